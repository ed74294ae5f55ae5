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
from test_convert import GEOMETRIES, MICRO, Model, model  # noqa: E402, F401


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
    side, half = {"height": sizes.image_size, "width": sizes.image_size}, [0.5] * 3
    image = JanusImageProcessor(size=side, image_mean=half, image_std=half)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(random_model.synthetic_tokenizer(sizes.vocabulary))),
        bos_token=convert.BOS, eos_token=convert.EOS, pad_token=convert.PAD,
        extra_special_tokens={"image_token": convert.IMAGE_PLACEHOLDER, "boi_token": convert.BEGIN_OF_IMAGE,
                              "eoi_token": convert.END_OF_IMAGE})
    both = JanusProcessor(image, tokenizer, chat_template="{{ messages }}", num_image_tokens=sizes.grid**2)
    for saved in [image, tokenizer] if only_image else [both]:
        saved.save_pretrained(folder)


def assert_equal(tensors: dict[str, tuple[str, np.ndarray]], state: dict[str, np.ndarray], sizes: convert.Sizes) -> None:
    """Both hold the same numbers; these tensors are taken out of both."""
    for tensor in convert.tensor_table(sizes):
        value = np.concatenate([state.pop(name) for name in tensor.sources("transformers")])
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        np.testing.assert_array_equal(tensors.pop(tensor.name)[1], value.reshape(tensor.shape), err_msg=tensor.name)
    assert not tensors and set(state) <= {"lm_head.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("only_image", [False, True])
@pytest.mark.parametrize("geometry", ["tiny", "tiny-gqa", "tiny-tied", "micro"])
def test_a_model_saved_by_transformers(geometry: str, only_image: bool, dtype: torch.dtype, model: Model) -> None:
    sizes = GEOMETRIES[geometry]
    original = transformers_model(sizes).to(dtype)
    original.save_pretrained(model.path, max_shard_size="300KB" if only_image else "1GB")
    save_processor(model.path, sizes, only_image)
    metadata, tensors = model.converted()
    assert_equal(tensors, {name: value.float().numpy() for name, value in original.state_dict().items()}, sizes)
    assert metadata["general.file_type"] == (0 if dtype == torch.float32 else 32)
    assert metadata["janus.image.background_color"] == [127] * 3 and metadata["janus.image.rescale_factor"] == 1 / 255
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    known = [tokenizer.id_to_token(i) or f"[PAD{i}]" for i in range(sizes.vocabulary)]
    assert metadata["tokenizer.ggml.tokens"] == known


@pytest.mark.parametrize("head", ["absent", "same", "other"])
@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize("top", [None, True, False])
def test_the_output_matrix_is_the_one_that_transformers_uses(
    top: bool | None, text: bool | None, head: str, model: Model
) -> None:
    state = model.write("transformers")
    if head == "same":
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    elif head == "absent":
        del state["lm_head.weight"]
    model.save(state)
    model.edit("config.json", "tie_word_embeddings", ... if top is None else top)
    model.edit("config.json", "text_config.tie_word_embeddings", ... if text is None else text)
    if top is False and head == "absent":
        return model.refused("lm_head.weight")
    used = JanusForConditionalGeneration.from_pretrained(model.path).lm_head.weight.detach().numpy()
    _, tensors = model.converted()
    np.testing.assert_array_equal(tensors.get("output.weight", tensors["token_embd.weight"])[1], used)


WIDTHS = {"vision_config": {"projection_dim": 4096}, "vq_config": {"projection_dim": 4096, "image_token_embed_dim": 4096}}


def test_defaults_are_those_of_the_classes() -> None:
    llama, janus = LlamaConfig(), JanusConfig()
    vision, vq = janus.vision_config, janus.vq_config
    sizes = convert.read_llama(convert.Config({}, "c"))
    assert sizes == dict(
        hidden=llama.hidden_size, layers=llama.num_hidden_layers, heads=llama.num_attention_heads,
        kv_heads=llama.num_key_value_heads, head_dim=llama.head_dim, feed_forward=llama.intermediate_size,
        vocabulary=llama.vocab_size, context=llama.max_position_embeddings, rms_eps=llama.rms_norm_eps,
        rope_theta=llama.rope_parameters["rope_theta"])
    read = convert.read_transformers_config(convert.Config(WIDTHS, "c"))
    assert read == convert.Sizes(
        **sizes, tied=janus.tie_word_embeddings, image_size=vision.image_size, patch_size=vision.patch_size,
        vit_width=vision.hidden_size, vit_layers=vision.num_hidden_layers, vit_heads=vision.num_attention_heads,
        vit_eps=vision.layer_norm_eps, vit_feed_forward=int(vision.hidden_size * vision.mlp_ratio),
        aligner_depth=vision.depth, gen_aligner_depth=vq.num_hidden_layers, gen_head_width=4096,
        codebook_size=vq.num_embeddings, codebook_dim=vq.embed_dim, vq_channels=vq.base_channels,
        vq_multipliers=tuple(vq.channel_multiplier), vq_res_blocks=vq.num_res_blocks, vq_z=vq.latent_channels)
    image, values = JanusImageProcessor(), convert.image_metadata(convert.Config({}, "c"), convert.Sizes())
    for key, value in (("mean", list(image.image_mean)), ("std", list(image.image_std)), ("min_size", image.min_size),
                       ("background_color", list(image.background_color)), ("rescale_factor", image.rescale_factor)):
        assert values[f"janus.image.{key}"][1] == value


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
def test_a_pickle_with_code_is_refused_without_running_it(protocol: str, model: Model) -> None:
    model.write(file_format="bin")
    path, trace = model.path / "pytorch_model.bin", model.base / "trace"
    state = torch.load(path) | {"gen_embed.weight": Bomb(trace)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(state["gen_embed.weight"]))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=protocol == "zip")
    model.refused("pytorch_model.bin", "safely" if protocol == "zip" else "not a zip archive")
    assert not trace.exists()
    torch.load(path, weights_only=False) if protocol != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # the bomb was a live one


OTHER_CONTENTS = [[1], "text", None, {"state_dict": {}}, torch.zeros(3)]
OTHER_TENSORS = [3, [torch.zeros(64, 8)], torch.zeros(64, 8).to_sparse(), torch.zeros(64, 8, device="meta"),
                 torch.zeros(64, 8, dtype=torch.int32), torch.tensor(1.0), torch.zeros(64, 8, dtype=torch.complex64)]
OTHER_ENTRIES = [{3: torch.zeros(64, 8)}, *({"gen_embed.weight": value} for value in OTHER_TENSORS)]


@pytest.mark.parametrize("kept, value", [*((False, value) for value in OTHER_CONTENTS),
                                         *((True, value) for value in OTHER_ENTRIES)], ids=range(13))
def test_entries_that_are_no_plain_tensors_are_refused(kept: bool, value: Any, model: Model) -> None:
    model.write(file_format="bin")
    path = model.path / "pytorch_model.bin"
    torch.save(torch.load(path) | value if kept else value, path)
    model.refused()


@pytest.mark.parametrize("layout", ["official", "transformers"])
@pytest.mark.parametrize("wrap", [OrderedDict, lambda state: {name: value.double() for name, value in state.items()}],
                         ids=["as it is", "float64"])
def test_what_training_programs_save_is_read(wrap: Any, layout: str, model: Model) -> None:
    """Float64, too: the file of the plain checkpoint, without a remark."""
    model.write(layout, file_format="bin")
    path = model.path / "pytorch_model.bin"
    torch.save(wrap(torch.load(path)), path)
    model.same(layout)
    path.rename(path.with_name("epoch-3.pth"))
    model.same(layout)


def test_entries_that_nothing_uses_are_a_remark(model: Model) -> None:
    model.write(file_format="bin")
    path = model.path / "pytorch_model.bin"
    extras = {"epoch": 3, "loss.weight": torch.zeros(2, dtype=torch.int64), "wide": torch.zeros(1).expand(9, 9)}
    torch.save(torch.load(path) | extras, path)
    model.same("official", "left out: epoch, loss.weight, wide")


def test_transformers_loads_what_is_stripped_or_left_out_alike(model: Model) -> None:
    """Extra tensors, names without `model.`, dead entries of an index: the weights are those of transformers."""
    state = {name.removeprefix("model."): value for name, value in model.write("transformers").items()}
    state |= {"vision_model.head.probe": np.zeros((1, 1, 64), np.float32)}
    checkpoints.save_weights(model.path, state, "safetensors", 2, dict.fromkeys(state, "F32"))
    (model.path / "model.safetensors").unlink()
    index = model.path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    places["vision_model.head.dead"] = places["lm_head.weight"]
    checkpoints.write_json(index, {"metadata": {}, "weight_map": places})
    loaded = JanusForConditionalGeneration.from_pretrained(model.path).state_dict()
    assert_equal(model.converted()[1], {name: value.numpy() for name, value in loaded.items()}, MICRO)


@pytest.mark.parametrize("loader", [AutoTokenizer, LlamaTokenizerFast])
def test_a_tokenizer_saved_anew_by_transformers_5(loader: Any, model: Model) -> None:
    """As a LlamaTokenizer, whose rules replace those of the file, it is refused; as AutoTokenizer takes it, not."""
    model.write()
    values = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": convert.BOS, "eos_token": convert.EOS}
    checkpoints.write_json(model.path / "tokenizer_config.json", values)
    original, text = Tokenizer.from_file(str(model.path / "tokenizer.json")), "Hi there  42 \n naïve"
    loader.from_pretrained(model.path).save_pretrained(model.path)
    same = Tokenizer.from_file(str(model.path / "tokenizer.json")).encode(text).ids == original.encode(text).ids
    assert same == (loader is AutoTokenizer)
    if same:
        model.converted()
    else:
        model.refused("transformers 5", "take the original tokenizer.json")


def test_views_and_shared_storage_are_read_right(model: Model) -> None:
    """A transposed view, a slice of a larger storage, a Parameter and two names for one storage are plain tensors."""
    model.write(sizes=replace(MICRO, tied=True), file_format="bin")
    path = model.path / "pytorch_model.bin"
    state = torch.load(path)
    expected = model.file()
    state["gen_embed.weight"] = state["gen_embed.weight"].T.contiguous().T
    state["gen_head.vision_head.bias"] = torch.cat([torch.ones(5), state["gen_head.vision_head.bias"]])[5:]
    state["aligner.layers.0.bias"] = torch.nn.Parameter(state["aligner.layers.0.bias"])
    state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"]
    torch.save(state, path)
    assert model.file() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_files_of_torch_are_read(shards: int, dtype: torch.dtype, model: Model) -> None:
    """What torch writes gives the file that the same archive written by hand gives."""
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    model.write("transformers", file_format="bin", shards=shards, dtype=kind)
    expected = model.file()
    for path in model.path.glob("*.bin"):
        state = torch.load(path)
        assert all(value.dtype == dtype for value in state.values())
        torch.save(state, path)
    assert model.file() == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_bin_is_converted_or_refused(data: st.DataObject, model: Model) -> None:
    original = model.beside("original")
    if not original.path.exists():
        original.write(file_format="bin")
    shutil.copytree(original.path, model.path, dirs_exist_ok=True)
    content = bytearray((original.path / "pytorch_model.bin").read_bytes())
    # The pickle stands first in the archive and its directory last: that is where damage is most telling.
    reach = data.draw(st.sampled_from([30000, len(content)]))
    position = data.draw(st.integers(0, reach - 1))
    position = data.draw(st.sampled_from([position, len(content) - 1 - position]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[min(position + data.draw(st.integers(0, 50)), len(content) - 1)] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[max(position, 1) :]
    (model.path / "pytorch_model.bin").write_bytes(content)
    model.survives()


def test_the_vision_ratio_gives_the_same_width_as_in_transformers() -> None:
    for width in range(32, 1200, 7):
        for inner in range(1, 300, 13):
            ratio = inner / width
            config = {"hidden_size": width, "mlp_ratio": ratio, "num_attention_heads": 1, "projection_dim": 4096}
            read = convert.read_transformers_config(convert.Config(WIDTHS | {"vision_config": config}, "c"))
            assert read.vit_feed_forward == int(width * ratio) and math.isclose(read.vit_feed_forward, inner, abs_tol=1)
