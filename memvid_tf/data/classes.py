"""Class names of the data sets, and what they are called in ImageNet VID.

Everything that trains a VID detector speaks VID's thirty classes: DET shares their WordNet ids,
COCO shares thirteen names under other spellings.
"""

# ILSVRC2015's order; class id - 1 is the position.
VID_WNIDS = {
    "n02691156": "airplane", "n02419796": "antelope", "n02131653": "bear",
    "n02834778": "bicycle", "n01503061": "bird", "n02924116": "bus", "n02958343": "car",
    "n02402425": "cattle", "n02084071": "dog", "n02121808": "domestic_cat",
    "n02503517": "elephant", "n02118333": "fox", "n02510455": "giant_panda",
    "n02342885": "hamster", "n02374451": "horse", "n02129165": "lion", "n01674464": "lizard",
    "n02484322": "monkey", "n03790512": "motorcycle", "n02324045": "rabbit",
    "n02509815": "red_panda", "n02411705": "sheep", "n01726692": "snake", "n02355227": "squirrel",
    "n02129604": "tiger", "n04468005": "train", "n01662784": "turtle", "n04530566": "watercraft",
    "n02062744": "whale", "n02391049": "zebra",
}  # fmt: skip
VID_LABELS = tuple(VID_WNIDS.values())

# COCO's name -> VID's.
COCO_TO_VID = {
    **{name: name for name in (
        "airplane", "bear", "bicycle", "bird", "bus", "car", "dog", "elephant", "horse",
        "motorcycle", "sheep", "train", "zebra")},
    "cow": "cattle",
    "cat": "domestic_cat",
}  # fmt: skip
# VID's watercraft has more than COCO's boats, so this one is a choice.
BOAT = {"boat": "watercraft"}

VOC_LABELS = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
