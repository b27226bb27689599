"""Flickr30k (Young et al., 2014): five captions an image; Karpathy's split keeps 1,000 images each for choosing and
testing.

    karpathy   dataset_flickr30k.json: the split of each image is in it
    hf         flickr_annotations_30k.csv: the same as a table, captions as JSON lists
    token      results_20130124.token, with the lists of images train.txt, val.txt, test.txt
    csv        results.csv (`image_name| comment_number| comment`), with the same lists

Images are `flickr30k-images/1000092795.jpg`.
"""

from collections.abc import Mapping
from typing import ClassVar

from perceptune.data.tasks.base import FlickrSet


class Flickr30k(FlickrSet):
    """Judged by CIDEr against all captions of an image."""

    template = "flickr30k-images/{name}"
    forms: ClassVar[Mapping[str, str]] = {
        "karpathy": "dataset_flickr30k.json",
        "hf": "flickr_annotations_30k.csv",
        "token": "results_20130124.token",
        "csv": "results.csv",
    }
    lists: ClassVar[Mapping[str, str]] = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}


TASK = Flickr30k
