"""The works that a card cites for the methods a model was made with."""

WORKS = {  # key: what it is cited for, title line
    "bloomzmms": "Denisov & Vu. BLOOMZMMS: Teaching a Multilingual Large Language Model to Understand Multilingual "
    "Speech via Multi-Instructional Training. Findings of NAACL 2024. arXiv:2404.10922",
    "mtbi": "Xie et al. Multi-Task Behaviour Imitation with Interleaving (MTBI). Interspeech 2025. arXiv:2505.18644",
    "lad": "Gopal et al. Language-Aware Distillation (LAD). Interspeech 2026. arXiv:2603.07025",
    "diva": "Held et al. Distilling an End-to-End Voice Assistant Without Instruction Training Data. 2024. "
    "arXiv:2410.02678",
    "blsp": "Wang et al. BLSP: Bootstrapping Language-Speech Pre-training via Behavior Alignment of Continuation "
    "Writing. 2023. arXiv:2309.00916",
    "salmonn": "Tang et al. SALMONN: Towards Generic Hearing Abilities for Large Language Models. ICLR 2024. "
    "arXiv:2310.13289",
    "granite": "Saon et al. Granite-speech. 2025. arXiv:2505.08699",
    "voxtral": "Liu et al. Voxtral. 2025. arXiv:2507.13264",
    "ultravox": "Fixie AI. Ultravox. https://github.com/fixie-ai/ultravox",
    "e-branchformer": "Kim et al. E-Branchformer: Branchformer with Enhanced Merging for Speech Recognition. 2022. "
    "arXiv:2210.00077",
    "whisper": "Radford et al. Robust Speech Recognition via Large-Scale Weak Supervision. ICML 2023. "
    "arXiv:2212.04356",
    "legoslm": "Ma et al. LegoSLM: Connecting LLM with Speech Encoder using CTC Posteriors. 2025. arXiv:2505.11352",
    "gkd": "Agarwal et al. On-Policy Distillation of Language Models. ICLR 2024. arXiv:2306.13649",
    "lora": "Hu et al. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022. arXiv:2106.09685",
}
CONNECTORS = {  # type of connector: works behind it
    "conformer_ctc": ["bloomzmms", "e-branchformer"],
    "whisper_qformer": ["diva"],
    "conv": ["blsp"],
    "window_qformer": ["salmonn"],
    "ctc_compress": ["legoslm"],
    "whisper_reader": ["whisper", "legoslm"],
}


def works_of(facts: dict) -> list[str]:
    """Keys of the works behind a model, from its connector and its stages of training."""
    connector = (facts.get("model") or {}).get("connector") or {}
    keys = list(CONNECTORS.get(connector.get("type"), []))
    if connector.get("gate"):
        keys.append("lad")
    for stage in facts.get("training") or []:
        keys += [key for key in stage.get("method") or [] if key in WORKS]
        keys += ["lora"] if stage.get("lora") else []
    return list(dict.fromkeys(keys))


__all__ = ["WORKS", "works_of"]
