"""The parts that sets of triplets are published in."""

PARTS = ("train", "val", "test")
SPLITS = (*PARTS, "test_imagenet", "test_no_imagenet")
BAPPS_TRAINING_SPLITS = ("traditional", "cnn", "mix")
BAPPS_SPLITS = ("cnn", "color", "deblur", "frameinterp", "superres", "traditional")
