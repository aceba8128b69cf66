"""What CI checks on the CPU: the plain networks, and forty architectures that stand for the kinds of models there are."""

from __future__ import annotations

from collections.abc import Iterator

from tests.accuracy.cpu import Case
from tests.accuracy.networks import networks

REPRESENTATIVE = (
    "AlbertForMaskedLM", "ASTForAudioClassification", "BambaForCausalLM", "BartForConditionalGeneration", "BertForMaskedLM",
    "BloomForCausalLM", "CLIPModel", "ConvNextForImageClassification", "DebertaV2ForMaskedLM", "DeepseekV3ForCausalLM",
    "DetrForObjectDetection", "DistilBertForSequenceClassification", "ElectraForTokenClassification", "FalconForCausalLM", "GPT2LMHeadModel",
    "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "Gemma3ForConditionalGeneration", "GptOssForCausalLM", "LlamaForCausalLM",
    "LlamaForSequenceClassification", "LlavaForConditionalGeneration", "MambaForCausalLM", "Mamba2ForCausalLM", "MistralForCausalLM",
    "MixtralForCausalLM", "OPTForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen2_5_VLForConditionalGeneration", "Qwen3MoeForCausalLM",
    "ResNetForImageClassification", "RobertaForQuestionAnswering", "SegformerForSemanticSegmentation", "SwinForImageClassification",
    "T5ForConditionalGeneration", "ViTForImageClassification", "VideoMAEForVideoClassification", "Wav2Vec2ForCTC",
    "WhisperForConditionalGeneration",
)  # fmt: skip


#: (name, trains) whose peak is off by more than 1 %, with what is known of the cause. A test fails when one of them is right.
MISSES = {
    ("autocast", False): "oneDNN's bfloat16 product takes scratch memory of a size we do not know the law of",
    ("autocast", True): "the same",
    ("checkpoint-non-reentrant", True): "checkpointing keeps the CPU generator's state, a host tensor of 5,056 bytes",
    ("checkpoint-reentrant", True): "the same",
    ("embedding-bag", True): "temporaries of its backward are not modelled",
    ("experts-routed", False): "routing is taken as balanced; the real router was not",
    (
        "SegformerForSemanticSegmentation",
        False,
    ): "a oneDNN convolution takes a copy of its output that ours does not, and frees it late",
    (
        "VideoMAEForVideoClassification",
        True,
    ): "oneDNN's backward of a 3-d convolution keeps a workspace that is not modelled",
}


def network_cases() -> Iterator[Case]:
    """Every plain network, in eval mode without grad and in training mode."""
    for network in networks():
        for train in (False, True):
            yield Case(network.name, network.build().train(train), tuple(network.inputs()), {}, network.loss, train)
