"""Paper xbn's Table 4 on embedded data: XBN Mask R-CNN fine-tuned from a classifier of digits, with the BNs frozen.

`tools/pretrain.py mask_rcnn_xbn_r50_digits_pretrained` makes the weights that it starts from.
"""

_base_ = ['./mask_rcnn_xbn_r50_digits.py', './_base_/frozen_norm.py']

model = dict(
    backbone=dict(
        frozen_stages=1,  # with the stem, as in the rows on COCO
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='pretrained/resnet50_xbn_digits.pth'),
        **_base_.frozen_norm,
    )
)
