"""mmdet's detectors, where a paper's table needs more of them than they give."""

from mmcv.ops import batched_nms
from mmdet.models.detectors import PanopticFPN


class PanopticFPNWithInstances(PanopticFPN):
    """Panoptic FPN whose predictions are instances and panoptic map: AP beside PQ, SQ and RQ (rbn, Table 7).

    mmdet's own keeps the map alone, and the few, confident instances that it is made of. Here ``test_cfg.rcnn`` is that
    of an instance segmentor, and the map is made of those instances that pass ``test_cfg.panoptic``:

        score_thr (float): Least score. Default 0, all.
        nms (dict): As in ``test_cfg.rcnn``; boxes that it leaves. Default none.
        mask_overlap, stuff_area_limit: As HeuristicFusionHead has them.

    Every part of the network runs once.
    """

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        """Predict ``pred_instances`` and ``pred_panoptic_seg`` of each image.

        Args:
            batch_inputs (Tensor): Images (N, C, H, W).
            batch_data_samples (list[DetDataSample]): One for each image; ``proposals`` in them are not looked at.
            rescale (bool): Whether boxes and masks have the original images' size.

        Returns:
            list[DetDataSample]: The same, with the predictions.
        """
        features = self.extract_feat(batch_inputs)
        proposals = self.rpn_head.predict(features, batch_data_samples, rescale=False)
        instances = self.roi_head.predict(features, proposals, batch_data_samples, rescale=rescale)
        metas = [sample.metainfo for sample in batch_data_samples]
        semantic = self.semantic_head.predict(features, metas, rescale)
        panoptic = self.panoptic_fusion_head.predict([self._to_fuse(found) for found in instances], semantic)
        for sample, found in zip(batch_data_samples, instances):
            sample.pred_instances = found
        return self.add_pred_to_datasample(batch_data_samples, panoptic)

    def _to_fuse(self, instances):
        cfg = self.test_cfg.panoptic
        instances = instances[instances.scores > cfg.get('score_thr', 0)]
        if 'nms' in cfg and len(instances):
            kept = batched_nms(instances.bboxes, instances.scores, instances.labels, cfg.nms)[1]
            instances = instances[kept]
        return instances
