"""What the roles of a tiny model say of given texts on a device, and the gradients of it: to be compared."""

import copy

import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.critics import build_critic
from rlhf_recipes.modeling.loading import disable_dropout
from rlhf_recipes.modeling.roles import ActorCritic
from tests.tiny import tiny_causal_lm, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", layers_to_transform=[1])


def policy_of(lora=False):
    """64 wide, in two heads of 32, as flash attention wants them at least; large weights, so that texts differ."""
    torch.manual_seed(0)
    model = tiny_causal_lm(TOKENIZER, hidden_size=64, num_attention_heads=2, num_key_value_heads=2,
                           initializer_range=0.1)  # fmt: skip
    model = get_peft_model(model, LORA) if lora else model
    disable_dropout(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.2, 0.2, parameter.numel()).view_as(parameter))
    return model


def texts():
    """Three prompts and completions of different lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, len(TOKENIZER), (3, 12), generator=generator)
    prompt_mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1]])
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    return {"prompt_ids": ids[:, :5], "prompt_mask": prompt_mask, "completion_ids": ids[:, 5:], "mask": mask}


def said_on(device, dtype=torch.float32, attention="sdpa", critic="head", lora=False, chunk=4, trunk=False):
    """Log-probabilities, entropies, values and reference `(3, 7)`, and the gradient of each trained weight.

    Args:
        dtype: In which the models compute, under autocast; their weights are of float32.
        trunk: Whether the frozen layers below an adapter are read once, for all.
    """
    policy = policy_of(lora)
    value = build_critic(critic, policy)
    head = value if critic == "head" else value.model.score
    with torch.no_grad():
        weights = [p for name, p in head.named_parameters() if name.endswith("weight")]
        for weight in weights:
            weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    roles = ActorCritic(policy, None if lora else copy.deepcopy(policy), critic=value, logits_chunk_size=chunk,
                        reuse_trunk=trunk).to(device)  # fmt: skip
    if roles.ref_model is not None:
        roles.ref_model.to(device)
    for model in (policy, getattr(value, "model", None)):
        if model is not None:
            getattr(model, "get_base_model", lambda model=model: model)().set_attn_implementation(attention)
    tokens = {name: tensor.to(device) for name, tensor in texts().items()}
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        states = roles.read_trunk(tokens) if trunk else None
        assert (states is not None) == trunk
        out = roles(**tokens, temperature=0.7, states=states)
        out["reference"] = roles.reference_logprobs(**tokens, temperature=0.7, states=states)
    (out["logprobs"].sum() + (out["values"] ** 2).sum()).backward()
    gradients = {name: p.grad.cpu() for name, p in roles.named_parameters() if p.grad is not None}
    return {
        name: out[name].detach().float().cpu() for name in ("logprobs", "entropy", "values", "reference")
    }, gradients


def distance(one, other):
    """The largest distance between tensors of the same names, each in units of the largest number in the first."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-3)) for name in one)
