"""Flickr8k (Hodosh et al., 2013): five captions an image.

    karpathy   dataset_flickr8k.json: the split of each image is in it
    token      Flickr8k.token.txt, with the lists of images Flickr_8k.trainImages.txt, ...dev..., ...test...
    csv        captions.txt (`image,caption`), with the same lists

Images are `Images/1000268201_693b08cb0e.jpg`.
"""

from typing import ClassVar

from perceptune.data.tasks.base import FlickrSet, files_of


class Flickr8k(FlickrSet):
    """Flickr8k, scored by CIDEr against all captions of an image."""

    template = "Images/{name}"
    forms: ClassVar = {"karpathy": "dataset_flickr8k.json", "token": "Flickr8k.token.txt", "csv": "captions.txt"}
    lists = files_of("Flickr_8k.{}Images.txt", train="train", validation="dev", test="test")


TASK = Flickr8k
