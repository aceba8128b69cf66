"""Config fields that the general rules of tiny_config cannot know, by model type or class."""

from __future__ import annotations

from typing import Any

#: What widths are divided by, where the widest hidden size does not say it well.
SCALES: dict[str, int] = {
    "bros": 4,  # Positions of boxes take hidden / 4 / 4 / 2 channels.
    "clvp": 2,  # Its rotary positions take 32 channels a head at least.
    "granite4_vision": 8,
    "mobilevit": 2,
    "pp_ocrv5_mobile_det": 1,
    "pp_ocrv6_small_det": 1,
    "swin2sr": 3,
    "uvdoc": 1,
}

_EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
_FOUR_STAGES = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
_SERIES = {"prediction_length": 8, "context_length": 16, "num_time_features": 1}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
#: Detectors whose default backbone needs timm run on transformers' own ResNet.
_RESNET_DETECTOR = {
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "backbone_config": _RESNET,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SHARED_KEYS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "intermediate_size": [512] * 4,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    "num_kv_shared_layers": 2,
}
_IMAGE_WORDS = {"<image>": 127, **{f"IMGIMG{chr(65 + index)}Z": 20 + index for index in range(10)}}
_EMU_WORDS = {
    "<image>": 127,
    "<|extra_200|>": 126,
    **{f"<|visual token {index:06d}|>": 20 + index for index in range(16)},
}
_SAM2 = {
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "backbone_config": {"image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]},
}
_GEMMA_EYES = {
    "model_type": "gemma4_vision",
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 8,
    "position_embedding_size": 64,
}
_GEMMA_DRAFT = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_COMPASS_ROPE = {kind: _ROPE | {"mrope_section": [1, 1, 0]} for kind in ("full_attention", "sliding_attention")}
_MLLAMA_EYES = {"intermediate_layers_indices": [0, 1], "vision_output_dim": 240}
#: Kernel, stride and padding of convolutions that PaddleOCR's detectors have no defaults for.
_OCR_BLOCKS = {
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        **{
            f"{name}_{ratio}ratio": [
                [long if "symmetric" in name or "vertical" in name else 1, long if "vertical" not in name else 1],
                [1, 1],
                [
                    long // 2 if "symmetric" in name or "vertical" in name else 0,
                    long // 2 if "vertical" not in name else 0,
                ],
            ]
            for name in ("vertical_long_to_small_conv", "horizontal_small_to_long_conv", "symmetric_conv_long")
            for ratio, long in (("long", 7), ("mid", 5), ("short", 3))
        },
    },
}
_OCR_STEM = {"stem_channels": [3, 48, 96]}
#: Kernel, channels in and out, stride and squeeze of a block: four stages that halve the image, as in detectors.
_OCR_STAGES = {
    "stem_channels": [3, 8, 16],
    "block_configs": [[[3, 16, 16, 1, True]], *([[3, 2**n, 2 ** (n + 1), 2, False]] for n in (4, 5, 6))],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_VQ = {"base_channels": 32, "num_embeddings": 10, "channel_multiplier": [1, 2], "latent_channels": 32}

#: What the class must be given to have defaults at all.
GIVEN: dict[str, dict[str, Any]] = {"gemma4_assistant": {"text_config": _GEMMA_DRAFT}}
CHANGES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "audio-spectrogram-transformer": {"max_length": 64},
    "autoformer": _SERIES,
    "bamba": {"attn_layer_indices": [1]},
    "BeitForSemanticSegmentation": _FOUR_STAGES,
    "blip-2": {"image_token_index": 127},
    "Blip2ForImageTextRetrieval": {"image_token_index": None, "qformer_config": {"use_qformer_text_input": True}},
    "chameleon": {"vocabulary_map": _IMAGE_WORDS, "vq_config": _VQ},
    "chmv2": {"post_process_channels": [16, 32, 64, 128]},
    "clap": {"audio_config": {"spec_size": 256, "num_hidden_layers": 4}},
    "clvp": {"decoder_config": {"decoder_fixing_codes": [83, 45, 45, 100]}},
    "cohere_compass": {"text_config": {"rope_parameters": _COMPASS_ROPE}},
    "cohere_compass_text": {"rope_parameters": _COMPASS_ROPE},
    "colqwen2": {"vlm_config": {"vision_config": {"hidden_size": 256}}},
    "conditional_detr": _RESNET_DETECTOR,
    "cvt": {"depth": [1, 2, 3]},
    "dab-detr": _RESNET_DETECTOR,
    "Data2VecVisionForSemanticSegmentation": _FOUR_STAGES,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_ocr2": {"text_config": {**_EXPERTS, "mlp_layer_types": ["dense", "sparse"]}},
    "deepseek_v2": {**_EXPERTS, "first_k_dense_replace": 1},
    "deformable_detr": _RESNET_DETECTOR,
    "depth_pro": {"patch_size": 28, "intermediate_hook_ids": [1, 0], "**": {"image_size": 28}},
    "detr": _RESNET_DETECTOR,
    "diffusion_gemma": {
        "canvas_length": 16,
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
    },
    "donut-swin": {"window_size": 2},
    "dots1": _EXPERTS,
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "efficientloftr": {"fine_matching_slice_dim": 4},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "emu3": {"vocabulary_map": _EMU_WORDS, "vq_config": {**_VQ, "codebook_size": 16, "num_embeddings": 16}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "falcon_h1": {"mamba_d_ssm": 512},
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"model_in_dim": 80}},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_audio": {"input_feat_size": 128},
    "gemma3n_text": _SHARED_KEYS,
    "gemma4": {"vision_config": _GEMMA_EYES},
    "gemma4_audio": {"subsampling_conv_channels": [128, 32]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-2, 0]],
        "spatial_target_layers": [0, 0, 1, 1],
    },
    "granite_speech": {"projector_config": {"encoder_hidden_size": 64}, "encoder_config": {"input_dim": 160}},
    "granite_speech_plus": {"projector_config": {"encoder_hidden_size": 64}, "encoder_config": {"input_dim": 160}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "HieraForPreTraining": {"decoder_hidden_size": 32, "decoder_depth": 2, "decoder_num_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl": {
        "text_config": {"head_dim": 8, "rope_parameters": _ROPE | {"mrope_section": [1, 1, 1, 1]}},
        "vision_config": {"text_hidden_size": 256},
    },
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": _ROPE | {"mrope_section": [1, 1, 1, 1]}},
    "informer": _SERIES,
    "instructblip": {"image_token_index": 127},
    "instructblipvideo": {"video_token_index": 127},
    "janus": {"vision_config": {"projection_dim": 256}, "vq_config": {**_VQ, "num_patches": 4}},
    "kosmos-2": {"latent_query_num": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lightglue": {"keypoint_detector_config": {"keypoint_decoder_dim": 65}},
    "llama4": {
        "vision_config": {
            "intermediate_size": 192,
            "projector_input_dim": 256,
            "projector_output_dim": 256,
            "vision_output_dim": 256,
        }
    },
    "llama4_vision_model": {
        "intermediate_size": 384,
        "projector_input_dim": 256,
        "projector_output_dim": 256,
        "vision_output_dim": 256,
    },
    "llava_next": {"image_grid_pinpoints": [[56, 112], [112, 56]]},
    "llava_next_video": {"image_grid_pinpoints": [[56, 112], [112, 56]]},
    "llava_onevision": {"image_grid_pinpoints": [[56, 112], [112, 56]]},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "mamba2": {"chunk_size": 8},
    "mask2former": {"backbone_config": {"window_size": 2}},
    "maskformer": {"backbone_config": {"window_size": 2}},
    "minicpm_ocr": {"image_token_id": 127, "video_token_id": 126},
    "minicpmv4_6": {"image_token_id": 127, "video_token_id": 126},
    "minicpmv4_7": {"image_token_id": 127, "video_token_id": 126},
    "ministral": {"head_dim": 8},
    "mistral3": {"spatial_merge_size": 2},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}, "vision_config": _MLLAMA_EYES},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "mllama_vision_model": _MLLAMA_EYES,
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2], "text_hidden_size": 256}},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "muse_spark": {"audio_config": {"num_hidden_layers": 4}},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 8},
    "nemotron_h": {"chunk_size": 8},
    "neomme": {"head_dim": 16},
    "oneformer": {"backbone_config": {"window_size": 2}},
    "ovis2": {"hidden_size": 256},
    "perceiver": {"num_cross_attention_heads": 1},
    "pp_doclayout_v2": {"class_thresholds": [0.5] * 2, "class_order": list(range(2))},
    "pp_lcnet_v4": _OCR_STEM,
    "pp_ocrv5_server_det": _OCR_BLOCKS,
    "pp_ocrv6_medium_det": {**_OCR_BLOCKS, "backbone_config": _OCR_STAGES},
    "pp_ocrv6_small_det": {"backbone_config": _OCR_STAGES, "layer_list_out_channels": [16, 32, 64, 128]},
    "pp_ocrv6_small_rec": {"backbone_config": _OCR_STEM},
    "pp_ocrv6_tiny_rec": {"backbone_config": _OCR_STEM},
    "qwen2_vl": {"vision_config": {"hidden_size": 256}},
    "qwen3_asr": {"audio_config": {"output_dim": 128}},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_shape": [4, 16], "axial_pos_embds_dim": [8, 24]},
    "ReformerModelWithLMHead": {"is_decoder": True, "axial_pos_shape": [4, 16], "axial_pos_embds_dim": [8, 24]},
    "sam2": {"vision_config": _SAM2, "prompt_encoder_config": {"image_size": 64}},
    "sam2_hiera_det_model": _SAM2["backbone_config"],
    "sam2_vision_model": _SAM2,
    "sam3_tracker": {"vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}},
    "sapiens2": {
        "head_config": {
            "upsample_out_channels": [16, 16],
            "conv_out_channels": [16],
            "scale_conv_out_channels": [8],
            "scale_final_hidden_sizes": [8, 8],
        }
    },
    "seggpt": {
        "num_hidden_layers": 4,
        "merge_index": 1,
        "intermediate_hidden_state_indices": [1, 2, 3],
        "image_size": [128, 64],
    },
    "shieldgemma2": {"mm_tokens_per_image": 4, "yes_token_index": 7, "no_token_index": 8},
    "stablelm": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "superglue": {"keypoint_detector_config": {"keypoint_decoder_dim": 65}},
    "superpoint": {"keypoint_decoder_dim": 65},
    "swin2sr": {"image_size": 32},
    "swin": {"window_size": 2},
    "t5": {"decoder_start_token_id": 0},
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 4}},
    "t5gemma2_encoder": {"mm_tokens_per_image": 4, "text_config": {"dropout_rate": 0.1}},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
    "table-transformer": _RESNET_DETECTOR,
    "time_series_transformer": _SERIES,
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8, "num_frames": 4},
    "upernet": {"backbone_config": _RESNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "uvdoc": {"backbone_config": {"out_features": [f"stage{index}" for index in range(1, 7)]}},
    "vibevoice": {"**": {"num_filters": 4}},
    "vibevoice_asr": {"**": {"num_filters": 4}},
    "vipllava": {"vision_feature_layers": [-1, -2], "vision_config": {}},
    "vitmatte": {"hidden_size": 96},
    "vits": {"upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8]},
    "voxtral": {"audio_token_id": 127},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "xcodec": {"codebook_dim": None},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"chunk_size": 8},
}
