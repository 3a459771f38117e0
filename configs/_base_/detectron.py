"""Where the codebases of papers xbn and sn differ from mmdet: maskrcnn-benchmark, Detectron and faster-rcnn.pytorch.

    model = dict(_base_.detectron)

Smooth L1 losses, and anchors inside the image only. With an FPN RoIAlign takes 2 x 2 samples of each bin
(``two_samples``, of an RoI extractor). Theirs are also boxes whose last pixel counts, and a RoIAlign that is half a
pixel off: mmdet's are kept.
"""

detectron = dict(
    rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9)),
    roi_head=dict(bbox_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1.0))),
    train_cfg=dict(rpn=dict(allowed_border=0)),
)
two_samples = dict(roi_layer=dict(sampling_ratio=2))
