# SPDX-License-Identifier: MIT
"""Tests of convert.py that need torch and transformers: .bin files, saved models, true defaults, hostile pickles."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import JanusConfig, JanusForConditionalGeneration, JanusImageProcessor, JanusProcessor, LlamaConfig
from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import checkpoints  # noqa: E402
import convert  # noqa: E402
import random_model  # noqa: E402
from checkpoints import write_checkpoint  # noqa: E402
from test_convert import GEOMETRIES, MICRO, assert_refused, converted, edit, survives  # noqa: E402


@pytest.mark.parametrize("dtype, kind", [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
@given(seed=st.integers(0, 2**32 - 1))
def test_rounding_is_that_of_torch(dtype: torch.dtype, kind: str, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 4096, np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    rounded = torch.from_numpy(values.copy()).to(dtype)
    keep = torch.isfinite(rounded).numpy()
    packed = convert.encode(values[keep], convert.Type[kind], "x")
    np.testing.assert_array_equal(packed.view(np.int16), rounded.view(torch.int16).numpy()[keep])


# ----------------------------------------------------------------------------------- what transformers writes and reads


def transformers_model(sizes: convert.Sizes, tied: bool | None = None) -> JanusForConditionalGeneration:
    values = checkpoints.transformers_config(sizes)
    values.pop("model_type")
    values["text_config"]["model_type"] = "llama"
    if tied is not None:
        values["tie_word_embeddings"] = tied
    torch.manual_seed(0)
    return JanusForConditionalGeneration(JanusConfig(**values))


def save_processor(folder: Path, sizes: convert.Sizes, only_image: bool = False) -> None:
    """Processor and tokenizer as transformers saves them."""
    image = JanusImageProcessor(
        size={"height": sizes.image_size, "width": sizes.image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(random_model.synthetic_tokenizer(sizes.vocabulary))),
        bos_token=convert.BOS,
        eos_token=convert.EOS,
        pad_token=convert.PAD,
        extra_special_tokens={
            "image_token": convert.IMAGE_PLACEHOLDER,
            "boi_token": convert.BEGIN_OF_IMAGE,
            "eoi_token": convert.END_OF_IMAGE,
        },
    )
    if only_image:
        image.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        JanusProcessor(
            image, tokenizer, chat_template="{{ messages }}", num_image_tokens=sizes.grid**2
        ).save_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("only_image", [False, True])
@pytest.mark.parametrize("geometry", ["tiny", "tiny-gqa", "tiny-tied", "micro"])
def test_a_model_saved_by_transformers(geometry: str, only_image: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    sizes = GEOMETRIES[geometry]
    model = transformers_model(sizes).to(dtype)
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB" if only_image else "1GB")
    save_processor(tmp_path / "model", sizes, only_image)
    metadata, tensors = converted(tmp_path / "model")
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    for tensor in convert.tensor_table(sizes):
        value = np.concatenate([state.pop(name) for name in tensor.sources("transformers")])
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        np.testing.assert_array_equal(tensors.pop(tensor.name)[1], value.reshape(tensor.shape), err_msg=tensor.name)
    assert not tensors and set(state) <= {"lm_head.weight"}
    assert metadata["general.file_type"] == (0 if dtype == torch.float32 else 32)
    assert metadata["janus.image.background_color"] == [127] * 3 and metadata["janus.image.rescale_factor"] == 1 / 255
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    known = [tokenizer.id_to_token(i) or f"[PAD{i}]" for i in range(sizes.vocabulary)]
    assert metadata["tokenizer.ggml.tokens"] == known


@pytest.mark.parametrize("head", ["absent", "same", "other"])
@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize("top", [None, True, False])
def test_the_output_matrix_is_the_one_that_transformers_uses(
    top: bool | None, text: bool | None, head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    state = write_checkpoint(folder, MICRO, "transformers")
    embedding = state["model.language_model.embed_tokens.weight"]
    if head == "same":
        state["lm_head.weight"] = embedding
    elif head == "absent":
        del state["lm_head.weight"]
    checkpoints.save_weights(folder, state, "safetensors", 1, dict.fromkeys(state, "F32"))
    edit(folder, "config.json", "tie_word_embeddings", ... if top is None else top)
    edit(folder, "config.json", "text_config.tie_word_embeddings", ... if text is None else text)
    if top is False and head == "absent":
        return assert_refused(folder, capsys, "lm_head.weight")
    used = JanusForConditionalGeneration.from_pretrained(folder).lm_head.weight.detach().numpy()
    _, tensors = converted(folder)
    np.testing.assert_array_equal(tensors.get("output.weight", tensors["token_embd.weight"])[1], used)


def test_defaults_are_those_of_the_classes() -> None:
    llama, janus = LlamaConfig(), JanusConfig()
    vision, vq = janus.vision_config, janus.vq_config
    sizes = convert.read_llama(convert.Config({}, "c"))
    assert sizes == dict(
        hidden=llama.hidden_size, layers=llama.num_hidden_layers, heads=llama.num_attention_heads,
        kv_heads=llama.num_key_value_heads, head_dim=llama.head_dim, feed_forward=llama.intermediate_size,
        vocabulary=llama.vocab_size, context=llama.max_position_embeddings, rms_eps=llama.rms_norm_eps,
        rope_theta=llama.rope_parameters["rope_theta"])
    config = {
        "vision_config": {"projection_dim": 4096},
        "vq_config": {"projection_dim": 4096, "image_token_embed_dim": 4096},
    }
    read = convert.read_transformers_config(convert.Config(config, "c"))
    assert read == convert.Sizes(
        **sizes,
        tied=janus.tie_word_embeddings,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vit_width=vision.hidden_size,
        vit_layers=vision.num_hidden_layers,
        vit_heads=vision.num_attention_heads,
        vit_eps=vision.layer_norm_eps,
        vit_feed_forward=int(vision.hidden_size * vision.mlp_ratio),
        aligner_depth=vision.depth,
        gen_aligner_depth=vq.num_hidden_layers,
        gen_head_width=4096,
        codebook_size=vq.num_embeddings,
        codebook_dim=vq.embed_dim,
        vq_channels=vq.base_channels,
        vq_multipliers=tuple(vq.channel_multiplier),
        vq_res_blocks=vq.num_res_blocks,
        vq_z=vq.latent_channels,
    )
    image = JanusImageProcessor()
    values = convert.image_metadata(convert.Config({}, "c"), convert.Sizes())
    assert values["janus.image.mean"][1] == list(image.image_mean) and values["janus.image.std"][1] == list(
        image.image_std
    )
    assert values["janus.image.background_color"][1] == list(image.background_color)
    assert (
        values["janus.image.min_size"][1] == image.min_size
        and values["janus.image.rescale_factor"][1] == image.rescale_factor
    )


def test_the_deepseek_pre_tokenizer_is_valid_for_tokenizers() -> None:
    """Every range of the letter set runs forwards.  A step divides what the steps before it left, so that the range :-~
    of the third, which holds all letters, cuts words at accents, and the range from U+0800 cuts off some spaces."""
    tokenizer = Tokenizer.from_str(json.dumps(random_model.synthetic_tokenizer(400)))
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("Hi \u1f7d\u2126 don't 42\n 你好x\u00e9  ")
    assert [text for text, _ in pieces] == ["Hi", "Ġ", "á½½âĦ¦", "Ġdon", "'", "t", "Ġ", "4", "2", "Ċ", "Ġ", "ä½łå¥½", "x", "Ã©",
                                            "ĠĠ"]


# --------------------------------------------------------------------------------------------------------- hostile .bin


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_without_running_it(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO, file_format="bin")
    path, trace = tmp_path / "model" / "pytorch_model.bin", tmp_path / "trace"
    state = torch.load(path) | {"gen_embed.weight": Bomb(trace)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(state["gen_embed.weight"]))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=protocol == "zip")
    assert_refused(tmp_path / "model", capsys, "pytorch_model.bin", "safely" if protocol == "zip" else "not a zip archive")
    assert not trace.exists()
    torch.load(path, weights_only=False) if protocol != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # the bomb was a live one


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1],
        lambda: "text",
        lambda: None,
        lambda: {"state_dict": {}},
        lambda: torch.zeros(3),
        lambda: {"gen_embed.weight": 3},
        lambda: {"gen_embed.weight": [torch.zeros(64, 8)]},
        lambda: {3: torch.zeros(64, 8)},
        lambda: {"gen_embed.weight": torch.zeros(64, 8).to_sparse()},
        lambda: {"gen_embed.weight": torch.zeros(64, 8, device="meta")},
        lambda: {"gen_embed.weight": torch.zeros(64, 8, dtype=torch.int32)},
        lambda: {"gen_embed.weight": torch.tensor(1.0)},
        lambda: {"gen_embed.weight": torch.zeros(64, 8, dtype=torch.complex64)},
    ],
    ids=range(13),
)
def test_entries_that_are_no_plain_tensors_are_refused(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO, file_format="bin")
    path = tmp_path / "model" / "pytorch_model.bin"
    value = make()
    torch.save(torch.load(path) | value if isinstance(value, dict) and "state_dict" not in value else value, path)
    assert_refused(tmp_path / "model", capsys)


@pytest.mark.parametrize("layout", ["official", "transformers"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: OrderedDict(state),
        lambda state: {name: value.double() for name, value in state.items()},
    ],
    ids=["as it is", "float64"],
)
def test_what_training_programs_save_is_read(
    wrap: Any, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Float64, too: the file of the plain checkpoint, without a remark."""
    write_checkpoint(tmp_path / "model", MICRO, layout, "bin")
    path = tmp_path / "model" / "pytorch_model.bin"
    converted(tmp_path / "model")
    expected = (tmp_path / "out.gguf").read_bytes()
    torch.save(wrap(torch.load(path)), path)
    converted(tmp_path / "model")
    assert (tmp_path / "out.gguf").read_bytes() == expected
    assert capsys.readouterr().err == ""
    path.rename(path.with_name("epoch-3.pth"))
    converted(tmp_path / "model")
    assert (tmp_path / "out.gguf").read_bytes() == expected


def test_entries_that_nothing_uses_are_a_remark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO, file_format="bin")
    path = tmp_path / "model" / "pytorch_model.bin"
    extras = {"epoch": 3, "loss.weight": torch.zeros(2, dtype=torch.int64), "wide": torch.zeros(1).expand(9, 9)}
    torch.save(torch.load(path) | extras, path)
    converted(tmp_path / "model")
    assert capsys.readouterr().err.endswith("left out: epoch, loss.weight, wide\n")


def test_transformers_loads_what_is_stripped_or_left_out_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Extra tensors, names without `model.`, dead entries of an index: the weights are those of transformers."""
    folder = tmp_path / "model"
    state = write_checkpoint(folder, MICRO, "transformers")
    changed = {name.removeprefix("model."): value for name, value in state.items()}
    changed |= {"vision_model.head.probe": np.zeros((1, 1, 64), np.float32)}
    checkpoints.save_weights(folder, changed, "safetensors", 2, dict.fromkeys(changed, "F32"))
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    places["vision_model.head.dead"] = places["lm_head.weight"]
    checkpoints.write_json(index, {"metadata": {}, "weight_map": places})
    state = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    loaded = {name: value.numpy() for name, value in state.items()}
    _, tensors = converted(folder)
    for tensor in convert.tensor_table(MICRO):
        value = np.concatenate([loaded[name] for name in tensor.sources("transformers")])
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        np.testing.assert_array_equal(tensors[tensor.name][1], value.reshape(tensor.shape), err_msg=tensor.name)


def deepseek_folder(folder: Path, **settings: Any) -> Tokenizer:
    """A checkpoint with the tokenizer_config.json of DeepSeek's form; its tokenizer as it should be."""
    write_checkpoint(folder, MICRO)
    values = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": convert.BOS, "eos_token": convert.EOS} | settings
    checkpoints.write_json(folder / "tokenizer_config.json", values)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_a_tokenizer_saved_anew_by_transformers_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a LlamaTokenizer, whose rules replace those of the file, it is refused; as AutoTokenizer takes it, not."""
    for loader in (AutoTokenizer, LlamaTokenizerFast):
        folder = tmp_path / loader.__name__ / "model"
        original = deepseek_folder(folder)
        text = "Hi there  42 \n naïve"
        loader.from_pretrained(folder).save_pretrained(folder)
        same = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == original.encode(text).ids
        assert same == (loader is AutoTokenizer)
        if same:
            converted(folder)
        else:
            assert_refused(folder, capsys, "transformers 5", "take the original tokenizer.json")


def test_views_and_shared_storage_are_read_right(tmp_path: Path) -> None:
    """A transposed view, a slice of a larger storage, a Parameter and two names for one storage are plain tensors."""
    sizes = replace(MICRO, tied=True)
    write_checkpoint(tmp_path / "model", sizes, file_format="bin")
    path = tmp_path / "model" / "pytorch_model.bin"
    state = torch.load(path)
    expected = converted(tmp_path / "model")[1]
    state["gen_embed.weight"] = state["gen_embed.weight"].T.contiguous().T
    state["gen_head.vision_head.bias"] = torch.cat([torch.ones(5), state["gen_head.vision_head.bias"]])[5:]
    state["aligner.layers.0.bias"] = torch.nn.Parameter(state["aligner.layers.0.bias"])
    state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"]
    torch.save(state, path)
    _, tensors = converted(tmp_path / "model")
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name][1], expected[name][1]) for name in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_files_of_torch_are_read(shards: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """What torch writes gives the file that the same archive written by hand gives."""
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    write_checkpoint(tmp_path / "model", MICRO, "transformers", "bin", shards, kind)
    converted(tmp_path / "model")
    expected = (tmp_path / "out.gguf").read_bytes()
    for path in (tmp_path / "model").glob("*.bin"):
        state = torch.load(path)
        assert all(value.dtype == dtype for value in state.values())
        torch.save(state, path)
    converted(tmp_path / "model")
    assert (tmp_path / "out.gguf").read_bytes() == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_bin_is_converted_or_refused(
    data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = tmp_path / "original"
    if not original.exists():
        write_checkpoint(original, MICRO, file_format="bin")
    folder = tmp_path / "model"
    shutil.copytree(original, folder, dirs_exist_ok=True)
    content = bytearray((original / "pytorch_model.bin").read_bytes())
    # The pickle stands first in the archive and its directory last: that is where damage is most telling.
    reach = data.draw(st.sampled_from([30000, len(content)]))
    position = data.draw(st.integers(0, reach - 1))
    position = data.draw(st.sampled_from([position, len(content) - 1 - position]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[min(position + data.draw(st.integers(0, 50)), len(content) - 1)] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[max(position, 1) :]
    (folder / "pytorch_model.bin").write_bytes(content)
    survives(folder, capsys)


def test_the_vision_ratio_gives_the_same_width_as_in_transformers() -> None:
    for width in range(32, 1200, 7):
        for inner in range(1, 300, 13):
            ratio = inner / width
            config = {"hidden_size": width, "mlp_ratio": ratio, "num_attention_heads": 1, "projection_dim": 4096}
            read = convert.read_transformers_config(
                convert.Config(
                    {"vision_config": config, "vq_config": {"projection_dim": 4096, "image_token_embed_dim": 4096}}, "c"
                )
            )
            assert read.vit_feed_forward == int(width * ratio) and math.isclose(read.vit_feed_forward, inner, abs_tol=1)
