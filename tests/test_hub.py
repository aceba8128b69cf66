"""Hub ids through the real huggingface_hub client against a local Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import graphmem
from graphmem.errors import CheckpointError, HubError, TargetError
from tests.checkpoints import safetensors_file, sharded
from tests.hub import COMMIT, Hub
from tests.models import LLAMA_PARAMETERS, config_bytes, llama_tensors


def _llama(hub: Hub, name: str = "org/llama", shards: int = 0, **behaviour: object) -> str:
    tensors = llama_tensors()
    files = sharded(tensors, shards) if shards else {"model.safetensors": safetensors_file(tensors)}
    return hub.add(name, {"config.json": config_bytes(), **files}, **behaviour)


def test_reads_headers_and_no_weights(hub: Hub) -> None:
    report = graphmem.inspect(_llama(hub))
    assert report["parameters"] == LLAMA_PARAMETERS
    assert report.origin == f"{hub.url.removeprefix('http://')} at {COMMIT[:12]}"
    header = hub.repos["org/llama"].files["model.safetensors"]
    assert [r.range for r in hub.requests if "/storage/" in r.path] == [f"bytes=0-{min(65_536, header.size) - 1}"]


def test_a_large_file_is_read_by_its_header_only(hub: Hub) -> None:
    hub.add(
        "org/big", {"model.safetensors": safetensors_file(llama_tensors(hidden=4096, vocab=32000, ffn=11008, kv=1024))}
    )
    graphmem.inspect("org/big")
    assert hub.repos["org/big"].files["model.safetensors"].size > 10**9
    assert sum(r.sent for r in hub.requests) < 200_000


def test_shards_are_read_at_once_not_in_a_row(hub: Hub) -> None:
    hub.most_in_flight = 0
    assert graphmem.inspect(_llama(hub, shards=19, latency=0.1))["parameters"] == LLAMA_PARAMETERS
    assert hub.most_in_flight >= 10


def test_the_token_goes_to_the_hub_and_not_to_the_storage_host(hub: Hub) -> None:
    _llama(hub, gated=True)
    graphmem.inspect("org/llama", token="may-read")
    by_host = {r.host.split(":")[0]: r.authorization for r in hub.requests if r.path.endswith("model.safetensors")}
    assert by_host == {"localhost": "Bearer may-read", "127.0.0.1": None}


@pytest.mark.parametrize("token", [None, "someone-else"])
def test_gated(hub: Hub, token: str | None) -> None:
    _llama(hub, gated=True)
    with pytest.raises(HubError) as error:
        graphmem.inspect("org/llama", token=token)
    assert str(error.value) == (
        f"org/llama is gated: accept its terms at {hub.url}/org/llama, then log in with `hf auth login` or give a token that "
        "may read it (--token or HF_TOKEN)"
    )


def test_private_needs_its_token(hub: Hub) -> None:
    _llama(hub, private_token="mine")
    with pytest.raises(
        TargetError,
        match=r"^org/llama is not a model repository on localhost:\d+, or it is private: check the spelling",
    ):
        graphmem.inspect("org/llama")
    assert graphmem.inspect("org/llama", token="mine")["parameters"] == LLAMA_PARAMETERS


def test_no_such_repository(hub: Hub) -> None:
    with pytest.raises(TargetError, match="^org/nothing is not a model repository on"):
        graphmem.inspect("org/nothing")


def test_no_such_revision(hub: Hub) -> None:
    _llama(hub)
    with pytest.raises(TargetError, match=r"^org/llama has no revision 'v9'; see the branches and tags at http"):
        graphmem.inspect("org/llama", revision="v9")


def test_a_repository_without_a_model(hub: Hub) -> None:
    hub.add("org/data", {"README.md": b"# data", "train.parquet": b"1234"})
    with pytest.raises(TargetError, match=r"^org/data: no model here: .* it holds README.md, train.parquet$"):
        graphmem.inspect("org/data")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "https://huggingface.co/org/llama/tree/main",
            "https://huggingface.co/org/llama/tree/main is a link; give the Hub id: org/llama",
        ),
        ("a b/c", "'a b/c' is neither a file or folder here nor a Hub id (owner/name)"),
        ("org//llama", "'org//llama' is neither a file or folder here nor a Hub id (owner/name)"),
        ("./nowhere", "./nowhere: no such file or folder"),
        ("", "the target is empty: give a Hub id (owner/name), a path, or a module"),
    ],
)
def test_what_is_no_id(hub: Hub, target: str, message: str) -> None:
    with pytest.raises(TargetError) as error:
        graphmem.inspect(target)
    assert str(error.value) == message


def test_a_server_error_that_passes_is_tried_again(hub: Hub) -> None:
    assert graphmem.inspect(_llama(hub, fault="503-once"))["parameters"] == LLAMA_PARAMETERS


def test_a_server_error_that_stays(hub: Hub) -> None:
    with pytest.raises(
        TargetError,
        match=r"^org/llama: org/llama: the Hub answered 503; try again in a minute, and neither the Hub cache",
    ):
        graphmem.inspect(_llama(hub, fault="503"))


def test_a_server_that_does_not_answer(hub: Hub) -> None:
    with pytest.raises(
        TargetError, match=r"^org/llama: localhost:\d+ cannot be reached \(ReadTimeout.*neither the Hub cache nor"
    ):
        graphmem.inspect(_llama(hub, fault="hang"))


def test_a_connection_cut_in_a_header_is_tried_again(hub: Hub) -> None:
    assert graphmem.inspect(_llama(hub, fault="cut-once"))["parameters"] == LLAMA_PARAMETERS


def test_a_connection_that_is_always_cut(hub: Hub) -> None:
    with pytest.raises(
        HubError,
        match=r"^(config.json|model.safetensors): the connection broke after [\d,]+ of [\d,]+ bytes .*; try again$",
    ):
        graphmem.inspect(_llama(hub, fault="cut"))


def test_a_server_that_ignores_range_is_hung_up_on(hub: Hub) -> None:
    hub.add("org/llama", {"model.safetensors": safetensors_file(llama_tensors(hidden=4096))}, fault="ignore-range")
    assert graphmem.inspect("org/llama")["parameters"]
    time.sleep(0.2)
    assert sum(r.sent for r in hub.requests) < 50_000_000  # of 5 GB; what sits in socket buffers when we hang up


def test_one_file_of_a_repository(hub: Hub) -> None:
    hub.add(
        "org/many",
        {"a/model.safetensors": safetensors_file(llama_tensors()), "b.safetensors": safetensors_file(llama_tensors(2))},
    )
    assert graphmem.inspect("org/many/a/model.safetensors")["parameters"] == LLAMA_PARAMETERS
    with pytest.raises(
        TargetError, match=r"^org/many has no file 'c.safetensors'; it has a/model.safetensors, b.safetensors$"
    ):
        graphmem.inspect("org/many/c.safetensors")


def _cache(repo_id: str, files: dict[str, bytes]) -> Path:
    """Files as huggingface_hub lays them out in its cache."""
    root = Path(os.environ["HF_HOME"], "hub", "models--" + repo_id.replace("/", "--"))
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot


def test_offline_reads_the_hub_cache(hub: Hub) -> None:
    snapshot = _cache("org/cached", {"config.json": config_bytes()})
    safetensors_file(llama_tensors()).write(snapshot / "model.safetensors")
    report = graphmem.inspect("org/cached", offline=True)
    assert report["parameters"] == LLAMA_PARAMETERS
    assert report.origin == f"Hub cache at {COMMIT[:12]} (--offline)"
    assert hub.requests == []


def test_cached_files_are_not_fetched_again(hub: Hub) -> None:
    _llama(hub, "org/known")
    snapshot = _cache("org/known", {"config.json": config_bytes()})
    safetensors_file(llama_tensors()).write(snapshot / "model.safetensors")
    assert graphmem.inspect("org/known")["parameters"] == LLAMA_PARAMETERS
    assert [r.path for r in hub.requests] == ["/api/models/org/known/revision/main"] or len(hub.requests) == 1


def test_the_catalog_answers_when_the_hub_cannot(hub: Hub) -> None:
    report = graphmem.inspect("microsoft/Phi-3-mini-128k-instruct", offline=True)
    assert report.origin == "built-in catalog (--offline): shapes built from the published config"
    assert report["parameters"] == 3_821_079_552
    assert any(note.startswith("total verified against 7,642,159,104 bytes") for note in report.notes)


def test_offline_and_unknown(hub: Hub) -> None:
    with pytest.raises(
        TargetError, match=r"^org/unknown: --offline, and neither the Hub cache nor the built-in catalog has it"
    ):
        graphmem.inspect("org/unknown", offline=True)
    with pytest.raises(TargetError, match=r"has it; did you mean Qwen/Qwen3-8B or .*\?$"):
        graphmem.inspect("Qwen/Qwen3-8", offline=True)
    with pytest.raises(TargetError, match=r"the built-in catalog has no revisions or files; drop them for its entry$"):
        graphmem.inspect("gpt2", offline=True, revision="v1")


def test_the_environment_variable_for_offline(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "graphmem", "inspect", "gpt2", "--json"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["origin"].startswith("built-in catalog (HF_HUB_OFFLINE is set)")


def test_an_adapter_and_its_base(hub: Hub) -> None:
    _llama(hub, "org/base")
    from tests.models import tensor

    lora = [
        tensor(f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{ab}.weight", *shape)
        for n in range(4)
        for ab, shape in (("A", (8, 64)), ("B", (64, 8)))
    ]
    hub.add(
        "org/lora",
        {
            "adapter_config.json": json.dumps(
                {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8}
            ).encode(),
            "adapter_model.safetensors": safetensors_file(lora),
        },
    )
    report = graphmem.inspect("org/lora")
    assert [section.name for section in report.sections] == ["all", "adapter", "base"]
    assert report.section("adapter")["parameters"] == 4 * 2 * 8 * 64
    assert report["parameters"] == 4 * 2 * 8 * 64 + LLAMA_PARAMETERS
    assert report.section("base")["parameters"] == LLAMA_PARAMETERS
    assert report.notes[0] == "LORA adapter for org/base, rank 8"


def test_a_pipeline_has_a_section_for_each_component(hub: Hub) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "X"],
        "safety_checker": [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    hub.add(
        "org/pipe",
        {
            "model_index.json": json.dumps(index).encode(),
            "scheduler/scheduler_config.json": b"{}",
            "unet/config.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": safetensors_file(llama_tensors(2)),
            "unet/diffusion_pytorch_model.fp16.safetensors": safetensors_file(llama_tensors(2)),
            "text_encoder/config.json": b"{}",
            "text_encoder/model.safetensors": safetensors_file(llama_tensors(3)),
        },
    )
    report = graphmem.inspect("org/pipe")
    assert [section.name for section in report.sections] == ["all", "unet", "text_encoder"]
    assert (
        "counted unet/diffusion_pytorch_model.safetensors; not counted: diffusion_pytorch_model.fp16.safetensors"
        in report.notes
    )


def test_a_listing_that_is_wrong_about_a_size(hub: Hub) -> None:
    files = {"model.safetensors": safetensors_file(llama_tensors())}
    repo = hub.repos[hub.add("org/wrong", files)]
    listed = safetensors_file(llama_tensors(5))

    class Lying(dict):  # type: ignore[type-arg]
        def items(self):  # type: ignore[no-untyped-def]
            return {"model.safetensors": listed}.items()

    repo.files = Lying(files)
    with pytest.raises(
        CheckpointError, match=r"^model.safetensors: .*(bytes after the last tensor|truncated|shorter than its listing)"
    ):
        graphmem.inspect("org/wrong")


def test_a_network_that_is_not_there(hub: Hub) -> None:
    program = "import graphmem; print(graphmem.inspect('gpt2').origin)"
    env = {**os.environ, "HF_ENDPOINT": "http://localhost:1"}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert (
        run.stdout
        == "built-in catalog (localhost:1 cannot be reached (Connection refused)): shapes built from the published config\n"
    )


def test_a_cache_that_holds_a_config_only_gives_way_to_the_catalog(hub: Hub) -> None:
    _cache("openai-community/gpt2", {"config.json": config_bytes()})
    assert graphmem.inspect("openai-community/gpt2", offline=True).origin.startswith("built-in catalog")
    _cache("org/config-only", {"config.json": config_bytes()})
    assert graphmem.inspect("org/config-only", offline=True)["parameters"] == LLAMA_PARAMETERS


def test_an_adapter_of_itself(hub: Hub, tmp_path: Path) -> None:
    from tests.models import tensor

    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    safetensors_file([tensor("a.lora_A.weight", 8, 64)]).write(tmp_path / "adapter_model.safetensors")
    report = graphmem.inspect(tmp_path)
    assert report["parameters"] == 512
    assert report.warnings == (
        f"base model not counted: {tmp_path} is an adapter itself; merge it into its base first",
    )


def test_an_adapter_trains_itself_over_a_frozen_base(hub: Hub) -> None:
    from tests.models import tensor

    _llama(hub, "org/base")
    hub.add("org/lora", {"adapter_config.json": json.dumps({"base_model_name_or_path": "org/base"}).encode(), "adapter_model.safetensors": safetensors_file([tensor("a.lora_A.weight", 8, 64)])})  # fmt: skip
    row = graphmem.inspect("org/lora")["training"].records()[0]
    assert (row["weight_bytes"], row["gradient_bytes"]) == (4 * (LLAMA_PARAMETERS + 512), 4 * 512)
