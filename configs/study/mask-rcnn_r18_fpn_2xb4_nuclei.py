"""The study's detector on nuclei of a microscopy image, which sn-mm make-nuclei cuts up."""

_base_ = 'mask-rcnn_r18_fpn_2xb4_scenes.py'

data_root = '{{$DATA:data/study/nuclei}}/coco/'
metainfo = dict(classes=('nucleus', ))
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{{$DATA:data/study/nuclei}}/coco/annotations/instances_val2017.json')
test_evaluator = val_evaluator
model = dict(test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=60)))
