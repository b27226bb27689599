"""TimeSformer: attention over time, then over space, in each block."""

from typing import Any, ClassVar

from torch import Tensor, nn

from perceptune.encoders.base import BILINEAR, VideoEncoder
from perceptune.errors import UserError


class Timesformer(VideoEncoder):
    """TimeSformer; token 0 is the [CLS] of the whole video. Time embeddings repeat for more frames than in training."""

    MODELS: ClassVar = {"timesformer": "TimesformerModel"}
    BLOCKS = "encoder.layer"
    NORM = "layernorm"
    UNUSED = ("classifier.",)
    SIZES = True

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Return the config. Raises `UserError` for variants without one [CLS] per video, which average over frames."""
        if config.attention_type != "divided_space_time":
            raise UserError(f"TimeSformer with `attention_type` {config.attention_type}; known is divided_space_time")
        return config

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the preprocessing of `facebook/timesformer-*`: shortest edge at the model's size, centre crop."""
        crop = {"do_center_crop": True, "crop_size": config.image_size, "default_to_square": False}
        mean = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}
        return {"size": {"shortest_edge": config.image_size}, "resample": BILINEAR, **crop, **mean}

    def use_frames(self, frames: int) -> None:
        """Set the number of frames, also in the config, from which the blocks read it and the width in patches."""
        super().use_frames(frames)
        config: Any = self.tower.config
        config.num_frames, config.image_size = frames, self.transform.size[1]

    def skip_time(self) -> None:
        """Skip the attention over time: with one frame a block is then a plain block of a Vision Transformer."""
        self.skips_time = True

    def unmark_time(self) -> None:
        """Add no time embeddings, as the official eP-ALM code does for images (`space_only_for_images`)."""
        self.marks_time = False
        self.tower.embeddings.attention_type = "space_only"  # no time embeddings for one frame; blocks unchanged

    def embed(self, x: Tensor) -> Tensor:
        """Embed videos as (B, 1 + patches * frames, dim); the frames of one patch are adjacent."""
        return self.tower.embeddings(x)

    def mean_over_time(self, patches: Tensor) -> Tensor:
        """Average over time steps, (B, P * frames, dim) -> (B, P, dim)."""
        return patches.unflatten(1, (-1, self.frames)).mean(2)

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block with attention over time and space, or over the space of one frame."""
        if not self.skips_time:
            return block(hidden)[0]
        layer: Any = block
        hidden = hidden + layer.attention(layer.layernorm_before(hidden))[0]
        return hidden + layer.output(layer.intermediate(layer.layernorm_after(hidden)))


ENCODER = Timesformer
MODEL_TYPES = tuple(ENCODER.MODELS)
