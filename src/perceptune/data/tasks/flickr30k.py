"""Flickr30k (Young et al., 2014): five captions an image; Karpathy's split keeps 1,000 images each for choosing and
testing.

    karpathy   dataset_flickr30k.json: the split of each image is in it
    hf         flickr_annotations_30k.csv: the same as a table, captions as JSON lists
    token      results_20130124.token, with the lists of images train.txt, val.txt, test.txt
    csv        results.csv (`image_name| comment_number| comment`), with the same lists

Images are `flickr30k-images/1000092795.jpg`.
"""

from typing import ClassVar

from perceptune.data.tasks.base import FlickrSet, files_of


class Flickr30k(FlickrSet):
    """Flickr30k, scored by CIDEr against all captions of an image."""

    template = "flickr30k-images/{name}"
    forms: ClassVar = {
        "karpathy": "dataset_flickr30k.json", "hf": "flickr_annotations_30k.csv", "token": "results_20130124.token",
        "csv": "results.csv",
    }  # fmt: skip
    lists = files_of("{}.txt", train="train", validation="val", test="test")


TASK = Flickr30k
