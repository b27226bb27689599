"""NoCaps (Agrawal et al., 2019): captions of things that COCO's captions do not name; for evaluation only.

`nocaps_val_4500_captions.json` in COCO's form, with ten captions an image and its domain; images are
`val/0013ea2087020901.jpg`. The test captions are hidden.
"""

from collections.abc import Iterator, Sequence

from perceptune.data.metrics.base import Scored
from perceptune.data.tasks.base import Captioned, CaptionSet, coco_rows, files_of, text_of
from perceptune.types import Sample


class NoCaps(CaptionSet):
    """NoCaps, scored by CIDEr over all images and for each domain."""

    files = files_of("nocaps_{}_4500_captions.json", validation="val")
    template = "val/{file_name}"

    def rows(self, split: str) -> Iterator[Captioned]:
        for path in self.annotations(split):
            for image, captions in coco_rows(path):
                domain = image.values.get("domain")
                media = self.medium(image, file_name=text_of(image, "file_name"))
                meta = {} if domain is None else {"domain": image.check_text("domain", domain)}
                yield Captioned(image, text_of(image, "id"), media, self.captions(split, *captions), meta)

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Add `CIDEr_in_domain` and so on, with document frequencies of each domain, as published."""
        whole = super().score(predictions, samples)
        for domain in dict.fromkeys(str(sample.meta.get("domain", "")) for sample in samples):
            chosen = [index for index, sample in enumerate(samples) if sample.meta.get("domain") == domain]
            if not chosen:
                continue
            part = super().score([predictions[index] for index in chosen], [samples[index] for index in chosen])
            key = f"{self.metric}_{domain.replace('-', '_')}"
            whole.summary[key] = part.summary[self.metric]
            for index, row in zip(chosen, part.per_sample, strict=True):
                whole.per_sample[index][key] = row[self.metric]
        return whole


TASK = NoCaps
