"""Clients that people use with OpenAI's API, as they are: the same answer through each of them.

Those that are not installed are skipped; `CLIENTS_PYTHON` names the Python of an environment that has them, and
`CLIENTS_NODE` a folder with node_modules/openai.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import perceptune
import runs as dwarf_runs
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from servers import KEY, Served, data_url, load_runs, png, served

# Each prints the answer to a question about a picture, streamed second; base, key, question and picture are given.
READ = "import json, sys\nbase, key, question, picture = json.load(sys.stdin)\n"
PARTS = (
    'parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": picture}}]\n'
    'messages = [{"role": "user", "content": parts}]\n'
)
CLIENTS = {
    "langchain_openai": (
        "from langchain_openai import ChatOpenAI\nfrom langchain_core.messages import HumanMessage\n"
        'model = ChatOpenAI(model="one", base_url=base, api_key=key)\nasked = [HumanMessage(content=parts)]\n'
        "whole = model.invoke(asked).content\nstreamed = ''.join(piece.content for piece in model.stream(asked))\n"
    ),
    "litellm": (
        "import litellm\n"
        'given = dict(model="openai/one", messages=messages, api_base=base, api_key=key)\n'
        "whole = litellm.completion(**given).choices[0].message.content\n"
        "pieces = litellm.completion(**given, stream=True)\n"
        "streamed = ''.join(piece.choices[0].delta.content or '' for piece in pieces)\n"
    ),
    "llama_index": (
        "from llama_index.llms.openai_like import OpenAILike\n"
        "from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock\n"
        'model = OpenAILike(model="one", api_base=base, api_key=key, is_chat_model=True, temperature=0)\n'
        "import base64\n"
        "image = ImageBlock(image=base64.b64decode(picture.partition(',')[2]))\n"
        'asked = [ChatMessage(role="user", blocks=[TextBlock(text=question), image])]\n'
        "whole = model.chat(asked).message.content\n"
        "streamed = ''.join(piece.delta or '' for piece in model.stream_chat(asked))\n"
    ),
}
NODE = """
import OpenAI from "openai"
const [base, key, question, picture] = JSON.parse(await new Response(process.stdin).text())
const client = new OpenAI({ baseURL: base, apiKey: key })
const parts = [{ type: "text", text: question }, { type: "image_url", image_url: { url: picture } }]
const asked = { model: "one", messages: [{ role: "user", content: parts }] }
const whole = (await client.chat.completions.create(asked)).choices[0].message.content
let streamed = ""
for await (const piece of await client.chat.completions.create({ ...asked, stream: true }))
  streamed += piece.choices[0].delta.content ?? ""
const seen = [{ type: "input_text", text: question }, { type: "input_image", image_url: picture }]
const input = [{ role: "user", content: seen }]
const response = (await client.responses.create({ model: "one", input })).output_text
console.log(JSON.stringify([whole, streamed, response]))
"""


@pytest.fixture(scope="module")
def server(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("asked") / "one"
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(place, perceptune.build(dwarf_runs.recipe(dwarfs, method=method)))
    with served(load_runs([f"one={place}"], Limits())) as running:
        yield running


def answers(command: Sequence[str], server: Served, **options: Path) -> list[str]:
    """What a client's program prints."""
    given = json.dumps([f"{server.base}/v1", KEY, "color?", data_url(png())])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def expected(server: Served) -> str:
    answer: str = server.chat()[1]["choices"][0]["message"]["content"]
    assert answer
    return answer


@pytest.mark.parametrize("name", CLIENTS)
def test_python_clients(name: str, server: Served) -> None:
    python = sys.executable if importlib.util.find_spec(name) else os.environ.get("CLIENTS_PYTHON")
    if python is None:
        pytest.skip(f"{name} is not installed")
    program = f"{READ}{PARTS}{CLIENTS[name]}print(json.dumps([whole, streamed]))"
    assert answers([python, "-c", program], server) == [expected(server)] * 2


def test_the_npm_package(server: Served, tmp_path: Path) -> None:
    folder, node = os.environ.get("CLIENTS_NODE"), shutil.which("node")
    if folder is None or node is None:
        pytest.skip("CLIENTS_NODE names no folder with node_modules/openai")
    program = Path(folder) / "ask.mjs"
    program.write_text(NODE)
    try:
        found = answers([node, str(program)], server)
    finally:
        program.unlink()
    assert found == [expected(server)] * 3
