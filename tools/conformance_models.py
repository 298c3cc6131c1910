"""The architectures of ``tools/conformance.py``: real code of timm and transformers, made small.

A case names a model of timm with the arguments that shrink it, or a configuration class of
transformers. Weights are drawn by ``tools/conformance_case.py``; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

from tools.conformance_case import Case


def _timm(name: str, size: int = 64, *, label: str = "", cut: dict[str, int] | None = None,
          **arguments: Any) -> Case:
    return Case(label or name, "timm", name, arguments, (3, size, size), cut=cut or {})


def _stages(path: str, count: int, blocks: int = 1) -> dict[str, int]:
    """Keeps ``blocks`` of each of ``count`` lists: ``stages.{}.blocks``."""
    return {path.format(i): blocks for i in range(count)}


def _hf(config: str, label: str, shape: tuple[int, ...], pool: str | None = None,
        **arguments: Any) -> Case:
    return Case(label, "hf", config, arguments, shape, pool)


def _torchvision(name: str, size: int = 64) -> Case:
    return Case(name, "torchvision", name, {}, (3, size, size))


_VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 4}
_TEXT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 64}
_IMAGE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "image_size": 64, "patch_size": 16}

TRANSFORMERS: tuple[Case, ...] = (
    _timm("vit_tiny_patch16_224", **_VIT, label="vit"),
    _timm("deit_tiny_patch16_224", **_VIT, label="deit"),
    _timm("deit_tiny_distilled_patch16_224", **_VIT, label="deit-distilled"),
    _timm("deit3_small_patch16_224", **_VIT, label="deit3"),
    _timm("beit_base_patch16_224", **_VIT, label="beit"),
    _timm("beitv2_base_patch16_224", **_VIT, label="beitv2"),
    _timm("vit_small_patch14_reg4_dinov2", 56, **{**_VIT, "img_size": 56}, label="dinov2-reg"),
    _timm("vit_giant_patch14_dinov2", 56, **{**_VIT, "img_size": 56, "embed_dim": 96},
          label="dinov2-swiglu"),
    _timm("vit_small_patch16_dinov3", **_VIT, label="dinov3"),
    _timm("eva02_tiny_patch14_224", 56, **{**_VIT, "img_size": 56}, label="eva02"),
    _timm("eva_giant_patch14_224", 56, **{**_VIT, "img_size": 56}, label="eva"),
    _timm("vit_base_patch16_rope_mixed_224", **_VIT, label="vit-rope-mixed"),
    _timm("vit_base_patch32_clip_224", **_VIT, label="clip"),
    _timm("vit_base_patch32_clip_quickgelu_224", **_VIT, label="clip-quickgelu"),
    _timm("vit_base_patch16_siglip_224", **_VIT, label="siglip"),
    _timm("aimv2_large_patch14_224", 56, **{**_VIT, "img_size": 56}, label="aimv2-rms"),
    _timm("swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=24,
          depths=(2, 2), num_heads=(2, 4), label="swin"),
    _timm("swinv2_tiny_window8_256", img_size=64, window_size=4, embed_dim=24,
          depths=(2, 2), num_heads=(2, 4), label="swinv2"),
    _timm("swinv2_cr_tiny_ns_224", img_size=64, window_size=4, embed_dim=24,
          depths=(2, 2), num_heads=(2, 4), label="swinv2-cr"),
    _timm("maxvit_tiny_tf_224", img_size=64, embed_dim=(32, 64), depths=(1, 1), label="maxvit"),
    _timm("coatnet_0_rw_224", img_size=64, embed_dim=(32, 32, 64, 64), depths=(1, 1, 1, 1),
          label="coatnet"),
    _timm("coatnet_rmlp_1_rw_224", img_size=64, embed_dim=(32, 32, 64, 64), depths=(1, 1, 1, 1),
          label="coatnet-rmlp"),
    _timm("mobilevit_xxs", 64, label="mobilevit"),
    _timm("mobilevitv2_050", 64, label="mobilevitv2"),
    _timm("efficientformer_l1", 224, label="efficientformer",
          cut={**_stages("stages.{}.blocks", 3), "stages.3.blocks": 5}),
    _timm("efficientformerv2_s0", img_size=64, label="efficientformerv2"),
    _timm("poolformer_s12", cut=_stages("stages.{}.blocks", 4), label="poolformer"),
    _timm("poolformerv2_s12", cut=_stages("stages.{}.blocks", 4), label="poolformerv2"),
    _timm("caformer_s18", cut=_stages("stages.{}.blocks", 4), label="caformer"),
    _timm("levit_128s", 224, label="levit"),
    _timm("mixer_s32_224", img_size=64, cut={"blocks": 2}, label="mixer"),
    _timm("gmlp_ti16_224", img_size=64, cut={"blocks": 2}, label="gmlp"),
    _timm("resmlp_12_224", img_size=64, cut={"blocks": 2}, label="resmlp"),
    _timm("cait_xxs24_224", **_VIT, label="cait"),
    _timm("xcit_nano_12_p16_224", **_VIT, label="xcit"),
    _timm("pvt_v2_b0", 64, depths=(1, 1, 1, 1), label="pvt-v2"),
    _timm("pit_ti_224", 224, cut=_stages("transformers.{}.blocks", 3), label="pit"),
    _timm("tiny_vit_5m_224", 224, cut=_stages("stages.{}.blocks", 4), label="tiny-vit"),
    _timm("davit_tiny", 224, depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192), label="davit"),
    _timm("focalnet_tiny_srf", cut=_stages("layers.{}.blocks", 4), label="focalnet"),
    _timm("edgenext_xx_small", 64, label="edgenext"),
    _timm("hiera_tiny_224", img_size=64, embed_dim=24, label="hiera"),
    _hf("ViTConfig", "hf-vit", (3, 64, 64), **_IMAGE),
    _hf("DeiTConfig", "hf-deit", (3, 64, 64), **_IMAGE),
    _hf("BeitConfig", "hf-beit", (3, 64, 64), **_IMAGE, use_relative_position_bias=True),
    _hf("Dinov2Config", "hf-dinov2", (3, 64, 64), **_IMAGE),
    _hf("Dinov2WithRegistersConfig", "hf-dinov2-reg", (3, 64, 64), **_IMAGE),
    _hf("DINOv3ViTConfig", "hf-dinov3", (3, 64, 64), **_IMAGE),
    _hf("CLIPVisionConfig", "hf-clip", (3, 64, 64), **_IMAGE),
    _hf("SiglipVisionConfig", "hf-siglip", (3, 64, 64), **_IMAGE),
    _hf("SwinConfig", "hf-swin", (3, 64, 64), image_size=64, embed_dim=24, depths=[2, 2],
        num_heads=[2, 4], window_size=4),
    _hf("Swinv2Config", "hf-swinv2", (3, 64, 64), image_size=64, embed_dim=24, depths=[2, 2],
        num_heads=[2, 4], window_size=4),
    _hf("BertConfig", "bert", (16,), **_TEXT),
    _hf("BertConfig", "minilm-mean", (16,), "mean", **_TEXT),
    _hf("BertConfig", "bert-cls", (16,), "cls", **_TEXT),
    _hf("DistilBertConfig", "distilbert", (16,), "cls", dim=64, n_layers=2, n_heads=4,
        hidden_dim=128, vocab_size=100, max_position_embeddings=64),
    _hf("RobertaConfig", "roberta", (16,), **_TEXT),
    _hf("XLMRobertaConfig", "xlm-roberta", (16,), "mean", **_TEXT),
    _hf("ElectraConfig", "electra", (16,), "cls", **_TEXT, embedding_size=32),
    _hf("AlbertConfig", "albert", (16,), **_TEXT, embedding_size=32),
    _hf("MPNetConfig", "mpnet", (16,), "mean", **_TEXT),
    _hf("DebertaV2Config", "deberta-v2", (16,), "cls", **_TEXT, relative_attention=True,
        pos_att_type=["p2c", "c2p"]),
    _hf("ModernBertConfig", "modernbert", (16,), "mean", **_TEXT, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
)

CONVOLUTIONAL: tuple[Case, ...] = (
    _timm("convnext_atto"),
    _timm("convnext_zepto_rms"),
    _timm("convnextv2_atto"),
    _timm("resnet18"),
    _timm("resnet26d"),
    _timm("resnet50", 96),
    _timm("resnetv2_18"),
    _timm("resnet50_gn", layers=(1, 1, 1, 1)),
    _timm("resnetv2_50x1_bit", cut=_stages("stages.{}.blocks", 4)),
    _timm("resnetblur18"),
    _timm("res2net50_26w_4s", layers=(1, 1, 1, 1)),
    _timm("resnext50_32x4d"),
    _timm("seresnet18"),
    _timm("skresnet18"),
    _timm("resnest14d"),
    _timm("regnetx_002"),
    _timm("regnety_002"),
    _timm("regnetz_005"),
    _timm("densenet121", block_config=(2, 3, 4, 2)),
    _timm("vgg11", 32, label="vgg11, 32 px"),
    _timm("vgg11_bn", 32, label="vgg11_bn, 32 px"),
    _timm("mobilenetv2_050"),
    _timm("mobilenetv3_small_050"),
    _timm("mobilenetv3_large_100"),
    _timm("mobilenetv4_conv_small"),
    _timm("mobilenetv4_conv_aa_medium"),
    _timm("mobilenetv4_hybrid_medium_075"),
    _timm("efficientnet_b0"),
    _timm("efficientnetv2_rw_t"),
    _timm("efficientnet_lite0"),
    _timm("tf_efficientnet_lite0"),
    _timm("efficientnet_es"),
    _timm("efficientnet_b0_gn"),
    _timm("ghostnet_050"),
    _timm("ghostnetv2_100"),
    _timm("ghostnetv3_050"),
    _timm("repvgg_a0"),
    _timm("mobileone_s0"),
    _timm("hrnet_w18_small"),
    _timm("mixnet_s"),
    _timm("darknet17"),
    _timm("rexnet_100"),
    _timm("nfnet_l0", 64),
    _timm("inception_v3", 128),
    _timm("fasternet_t0"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("squeezenet1_1"),
)

CASES = (*TRANSFORMERS, *CONVOLUTIONAL)
