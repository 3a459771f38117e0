"""GN and SN in the detectors of paper sn: in the backbone from weights pretrained with them, and in the heads.

"Head" in Tables V and VI is taken to be FPN, box head and mask head. A 2fc box head has no place for a norm over
positions, so one with norms has 4 convs and 1 fc, as in Detectron's GN baselines; rows without keep the 2fc. The
authors' later release for Detectron.pytorch has Mask R-CNN so; its Faster R-CNN has SN in the FPN before a 2fc head.

SN's momentum is the authors' 0.003. Its control parameters have no weight decay, as gamma and beta, and norms' biases
learn at the same rate as their weights. (8,2) is pretraining on 8 GPUs with 2 images each.
"""

_base_ = '../../_base_/gn_norm.py'

gn_mask_heads = dict(
    neck=_base_.gn_heads.neck, roi_head=dict(mask_head=dict(norm_cfg=_base_.gn), **_base_.gn_heads.roi_head)
)

sn_biases = dict(_delete_=True, bias_lr_mult=2, bias_decay_mult=0, norm_decay_mult=0)  # a paramwise_cfg

sn = dict(type='SN', momentum=0.003)
sn_norm = dict(norm_cfg=sn, norm_eval=False, init_cfg=dict(checkpoint='pretrained/resnet50_sn_8x2.pth'))
sn_heads = dict(neck=dict(norm_cfg=sn), roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=sn)))
sn_mask_heads = dict(neck=sn_heads['neck'], roi_head=dict(mask_head=dict(norm_cfg=sn), **sn_heads['roi_head']))
