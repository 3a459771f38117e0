"""ResNet-50, SN with the hard ratios of epoch 30 from the start, ImageNet: paper sn, Table III.

The ratios are those of a snapshot of resnet50_sn_8x32_in1k.py, and nothing else is:

    weights = torch.load('work_dirs/resnet50_sn_8x32_in1k/epoch_30.pth')['state_dict']
    ratios = {key: value for key, value in weights.items() if key.endswith(('mean_weight', 'var_weight'))}
    torch.save(ratios, 'pretrained/resnet50_sn_8x32_ratios_30e.pth')
"""

_base_ = './resnet50_sn_8x32_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(hard=True)))
load_from = 'pretrained/resnet50_sn_8x32_ratios_30e.pth'
