"""One case for every snapshot whose settings are known exactly: its file and the script that replays it.

`SKIPPED` names the exact snapshots that have no case, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tests.accuracy.snapshot_models.course import NamedSwiGLU, Sizes, SwiGLU
from tests.accuracy.snapshot_scripts import course, own
from tests.accuracy.snapshot_scripts.stage import Mark


@dataclass(frozen=True)
class SnapshotCase:
    """A snapshot file (in shared/gpu_snapshots) and the script that replays it.

    `script(mark)` runs under the recorder's default device. `autocast` says that it casts to bf16. `inferred` says that
    the author's model is not public and was read off the events. `torch` is the version that made the snapshot.
    """

    file: str
    name: str
    script: Callable[[Mark], None]
    torch: str
    autocast: bool = False
    inferred: bool = False


SMALL = partial(Sizes, 768, 3072, 12, 12)
MEDIUM = partial(Sizes, 1024, 4096, 24, 16)
LARGE = partial(Sizes, 1280, 5120, 36, 20)
XL = partial(Sizes, 1600, 6400, 48, 25)
B27 = partial(Sizes, 2560, 10240, 32, 32)
NIU = Sizes(512, 1344, 4, 16, 256)
TOY = Sizes(768, 3072, 12, 12, 128, 50_000)


def _case(
    file: str, torch_version: str, script: Callable[..., None], *settings: object, inferred: bool = False
) -> SnapshotCase:
    """A case named after its file."""
    bf16 = "bf16" in file or "bfloat16" in file or "mixed" in file or file.endswith("61dcd1")
    run = partial(script, *settings)
    return SnapshotCase(file + ".json.gz", file, run, torch_version, bf16, inferred)


def _sgd(model: nn.Module, momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=momentum)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


_WED = "Wedsonlin__assignment2-systems__medium"
_KK = "kkaitlyn111__cs336-a2-systems__memory_ctx"
_NIU = "NiuHuangxiaozi__assignment2-systems__forward"
_BOL = "bolongcheng__assignment2-systems__memory_snapshot_xl_fwd_cl"
_LIN = "LINYUNLinYun__CS336-assignment2-systems__xl_ctx"
_YY = "yyin-dev__cs336-a2__d_model_1600_layers_48_heads_25_batch_4_ctx_"
_AI = "aimetrics__assignment2-systems__memory_2.7b_"
_HYP = "Hyperion-shuo__assignment2-systems__memory_snapshot_large_cl"
_SID = "sidsoc12__spring2024-assignment2-systems__mem_snapshot_ctx"
_CTK = "CTKnight__stanford-cs336-assignment2-systems__2p7B_ctx128_forward_float32"
_OKA = "Okazaki-Yumemi__CS336__memory_small_"
_QR = "QR-0W__Stanford-CS336__size-"
_RES = "tonghuikang__optimizer-memory-profiles__timeline_gpu_"

CASES: tuple[SnapshotCase, ...] = (
    _case(f"{_WED}_128_inference_memory_snapshot.pickle__77da8f", "2.11", course.wedsonlin_inference, MEDIUM(128)),
    _case(f"{_WED}_128_training_memory_snapshot.pickle__0db7d8", "2.11", course.wedsonlin_training, MEDIUM(128), False),
    _case(f"{_WED}_256_training_memory_snapshot.pickle__8a4284", "2.11", course.wedsonlin_training, MEDIUM(256), False),
    _case(f"{_WED}_512_training_memory_snapshot.pickle__61dcd1", "2.11", course.wedsonlin_training, MEDIUM(512), True),
    _case(f"{_KK}128_forward.pickle__919955", "2.6", own.kkaitlyn_forward, B27(128), False, False),
    _case(f"{_KK}128_forward_.pickle__a97ea9", "2.6", own.kkaitlyn_forward, B27(128), False, False),
    _case(f"{_KK}128_forward_mixed.pickle__bebd77", "2.6", own.kkaitlyn_forward, B27(128), True, False),
    _case(f"{_KK}128_fullstep.pickle__860601", "2.6", own.kkaitlyn_training, B27(128)),
    _case(f"{_KK}256_forward_.pickle__019e70", "2.6", own.kkaitlyn_forward, B27(256), False, True),
    _case(f"{_KK}256_forward_mixed.pickle__73107f", "2.6", own.kkaitlyn_forward, B27(256), True, True),
    _case(f"{_KK}512_forward_.pickle__b9620c", "2.6", own.kkaitlyn_forward, B27(512), False, True),
    _case(
        "silmont2000__assignment2-systems__memory_forward_fp32_128.pickle__769df2",
        "2.6",
        own.silmont_forward,
        SMALL(128),
    ),
    _case(f"{_NIU}_memory_snapshot_100.pickle__baf850", "2.6", own.niu_forward, NIU, 100),
    _case(f"{_NIU}_memory_snapshot_150.pickle__f1c4f9", "2.6", own.niu_forward, NIU, 150),
    _case(f"{_NIU}_and_backward_memory_snapshot_100.pickle__9ab7a6", "2.6", own.niu_training, NIU, 100, False),
    _case(
        f"{_NIU}_and_backward_memory_snapshot_200_mixed_precision.pickle__4ed700",
        "2.6",
        own.niu_training,
        NIU,
        200,
        True,
    ),
    _case(f"{_BOL}128_dtypetorch.float32.pickle__c8575e", "2.11", course.bolongcheng_forward, B27(128), False),
    _case(f"{_BOL}2048_dtypetorch.float32.pickle__5f809f", "2.11", course.bolongcheng_forward, B27(2048), False),
    _case(f"{_BOL}512_dtypetorch.float32.pickle__0df6e0", "2.11", course.bolongcheng_forward, B27(512), True),
    *(
        _case(
            f"{_LIN}{context}_forward_{kind}.pickle__{blob}",
            "2.11",
            course.linyun_forward,
            B27(context),
            grad,
            kind == "bf16",
        )
        for context, kind, blob, grad in (
            (128, "none", "972da1", False),
            (128, "none", "a528b4", False),
            (512, "none", "de79a1", False),
            (1024, "none", "0713a1", False),
            (2048, "none", "8bc56a", False),
            (128, "bf16", "e1139f", False),
            (512, "bf16", "6499e3", False),
            (1024, "bf16", "06f69e", False),
            (2048, "bf16", "0b44bf", False),
            (128, "bf16", "3333ec", True),
            (128, "none", "9a3860", True),
            (128, "none", "8f7e5d", True),
            (128, "none", "08d334", True),
        )
    ),
    _case(f"{_LIN}128_full_step_none.pickle__c5fe74", "2.11", course.linyun_training, B27(128), False),
    _case(f"{_LIN}512_full_step_none.pickle__f23d54", "2.11", course.linyun_training, B27(512), False),
    _case(f"{_LIN}128_full_step_bf16.pickle__f68696", "2.11", course.linyun_training, B27(128), True),
    _case(f"{_YY}256_memory_snapshot.pickle__f49929", "2.6", course.yyin_forward, XL(256), False),
    _case(f"{_YY}128_memory_snapshot.pickle__5b1a98", "2.6", course.yyin_forward, XL(128), True),
    _case(f"{_AI}forward_seq128_bf16.pickle__50e712", "2.8", course.aimetrics_forward, B27(128), True),
    _case(f"{_AI}forward_seq256_bf16.pickle__33a7d7", "2.8", course.aimetrics_forward, B27(256), True),
    _case(f"{_AI}train_seq128_bf16.pickle__5c5fe4", "2.8", course.aimetrics_training, B27(128), True, NamedSwiGLU),
    _case(f"{_AI}train_seq128.pickle__20d8f6", "2.8", course.aimetrics_training, B27(128), False, SwiGLU),
    _case(
        "HanFa__assignment2-systems__benchmark_toy_model_small_FP32_seq_128_inference.pickle__21506e",
        "2.9",
        own.hanfa_inference,
        TOY,
    ),
    _case(f"{_HYP}256_fw.pickle__44a631", "2.6", course.hyperion_forward, LARGE(256), False, False),
    _case(f"{_HYP}512_fw_bf16.pickle__aa0bb8", "2.6", course.hyperion_forward, LARGE(512), False, True),
    _case(f"{_HYP}512_fw_with_grad.pickle__dceeb6", "2.6", course.hyperion_forward, LARGE(512), True, False),
    _case(f"{_HYP}128_fw_with_grad_bf16.pickle__8a3203", "2.6", course.hyperion_forward, LARGE(128), True, True),
    _case(f"{_HYP}256_fw_with_grad_bf16.pickle__e99c76", "2.6", course.hyperion_forward, LARGE(256), True, True),
    _case(f"{_HYP}512_fw_with_grad_bf16.pickle__7fe70b", "2.6", course.hyperion_forward, LARGE(512), True, True),
    _case(f"{_SID}128_fp32_infer.pickle__09d970", "2.6", course.sidsoc_forward, B27(128)),
    _case(f"{_SID}256_fp32_infer.pickle__0c2367", "2.6", course.sidsoc_forward, B27(256)),
    _case(f"{_SID}512_fp32_infer.pickle__e6cb6b", "2.6", course.sidsoc_forward, B27(512)),
    _case(f"{_SID}128_fp32_train.pickle__8169e1", "2.6", course.sidsoc_training, B27(128)),
    _case(f"{_CTK}.pickle__911d65", "2.6", own.ctknight_forward, B27(128), False, inferred=True),
    _case(f"{_CTK}_bfloat16.pickle__72a294", "2.6", own.ctknight_forward, B27(128), True, inferred=True),
    _case(f"{_OKA}forward_128.pickle__831e49", "2.11", course.okazaki_forward, SMALL(128)),
    _case(f"{_OKA}train_128.pickle__20ef27", "2.11", course.okazaki_training, SMALL(128)),
    *(
        _case(
            f"{_QR}{size}_mode-forward_precision-{kind}.pickle__{blob}",
            "2.11",
            own.qr_forward,
            sizes,
            kind == "mixed_bf16",
        )
        for size, kind, blob, sizes in (
            ("2.7b_ctx-128", "full_fp32", "4fe637", B27(128)),
            ("2.7b_ctx-128", "full_fp32", "4a27f4", B27(128)),
            ("2.7b_ctx-256", "full_fp32", "373956", B27(256)),
            ("2.7b_ctx-512", "full_fp32", "6d9f25", B27(512)),
            ("2.7b_ctx-512", "full_fp32", "852565", B27(512)),
            ("2.7b_ctx-128", "mixed_bf16", "64d0cf", B27(128)),
            ("2.7b_ctx-128", "mixed_bf16", "5ef026", B27(128)),
            ("2.7b_ctx-512", "mixed_bf16", "149034", B27(512)),
            ("small_ctx-128", "full_fp32", "1fede3", SMALL(128)),
            ("small_ctx-128", "full_fp32", "8f0727", SMALL(128)),
        )
    ),
    _case(f"{_QR}2.7b_ctx-512_mode-forward_precision-full_fp32.pickle__60335d", "2.11", own.qr_everything, B27(512)),
    _case(f"{_QR}2.7b_ctx-128_mode-forward_precision-full_fp32.pickle__4970a4", "2.11", own.qr_everything, B27(128)),
    _case(f"{_RES}sgd", "2.5", own.resnet50_training, _sgd, 1),
    _case(f"{_RES}sgd_momentum", "2.5", own.resnet50_training, partial(_sgd, momentum=0.9), 1),
    _case(f"{_RES}adam", "2.5", own.resnet50_training, _adam, 1),
    _case(f"{_RES}adam_gradacc", "2.5", own.resnet50_training, _adam, 4),
)

SKIPPED: dict[str, str] = {
    "silmont2000__assignment2-systems__fp32.html_snapshot.pickle__7142dd.json.gz": "the same record as memory_forward_fp32_128",
    "bcrafton__assignment2-systems__memory_snapshot.pickle__06f51a.json.gz": "torch.compile: inductor decides what is kept",
}
