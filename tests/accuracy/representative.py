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


def network_cases() -> Iterator[Case]:
    """Every plain network, in eval mode without grad and in training mode."""
    for network in networks():
        for train in (False, True):
            yield Case(network.name, network.build().train(train), tuple(network.inputs()), {}, network.loss, train)
