"""Models and token ids that PPO cannot work with are refused with names and sizes, before anything is sampled."""

import pytest
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    T5Config,
    ViTConfig,
)

from rlhf_recipes.modeling.decoders import check_decoder
from rlhf_recipes.modeling.loading import ModelArguments, load_policy
from tests.architectures import DECODERS, SEE_AHEAD, each, tiny_model
from tests.ppo.helpers import DATA, TOKENIZER, tiny_policy, trainer
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

T5 = T5Config(vocab_size=400, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
BART = BartConfig(vocab_size=400, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                  decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
ROWS = TOKENIZER.vocab_size  # of the embedding that `tiny_policy` has
FILM = TOKENIZER("The film")["input_ids"]


@pytest.mark.parametrize("name", each(DECODERS))
def test_a_decoder_is_taken(name):
    check_decoder(tiny_model(name))


@pytest.mark.parametrize("name", SEE_AHEAD)
def test_what_sees_the_tokens_to_come_is_refused(name):
    model = tiny_model(name)
    with pytest.raises(ValueError, match=f"{type(model).__name__} sees what is to come.*AutoModelForCausalLM"):
        check_decoder(model)


def test_a_bert_that_is_a_decoder_is_taken():
    check_decoder(tiny_model("bert", is_decoder=True))


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_an_encoder_decoder_is_refused_as_object_and_by_its_folder(tmp_path, config):
    model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(ValueError, match=rf"{type(model).__name__} is an encoder-decoder.*Give a decoder"):
        trainer(tmp_path / "run", model)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"model' is an encoder-decoder.*'{config.model_type}'"):
        load_policy(ModelArguments(model_name_or_path=str(tmp_path / "model")))
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        trainer(tmp_path / "run", str(tmp_path / "model"), model_init_kwargs={"dtype": "float32"})


def test_what_is_no_language_model_is_refused_without_a_list_of_all_that_are(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'vit', for which transformers has no causal language") as refused:
        load_policy(ModelArguments(model_name_or_path=str(tmp_path)))
    assert len(str(refused.value)) < 400
    with pytest.raises(TypeError, match="LlamaForSequenceClassification has no language-model head"):
        check_decoder(tiny_classifier(TOKENIZER, kind="llama"))


def with_prompt(*last):
    return Dataset.from_dict({"input_ids": [[*FILM]] * 15 + [[*FILM, *last]]})


def test_a_prompt_with_an_id_beyond_the_embedding_is_named_with_its_row_and_sizes(tmp_path):
    with pytest.raises(ValueError, match=rf"Row 15 of the prompts has token {ROWS} \(.*LlamaForCausalLM has "
                                         rf"embeddings for {ROWS} tokens, 0 to {ROWS - 1}"):  # fmt: skip
        trainer(tmp_path, data=with_prompt(ROWS))
    trainer(tmp_path, data=with_prompt(ROWS - 1))


def test_tokens_that_were_added_to_the_tokenizer_alone_are_refused_where_a_prompt_has_them(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_start|>"])
    trainer(tmp_path / "unused", tokenizer=tokenizer)
    data = Dataset.from_dict({"prompt": [*DATA["prompt"][:15], "<|im_start|>user"]})
    with pytest.raises(ValueError, match=rf"'<\|im_start\|>'.*resize_token_embeddings\({ROWS + 1}\)"):
        trainer(tmp_path / "used", tokenizer=tokenizer, data=data)


def test_an_end_that_is_never_sampled_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"Token {ROWS + 7} .*never sampled"):
        trainer(tmp_path, stop_token_id=[ROWS + 7])
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    policy = tiny_policy()
    policy.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"'<\|im_end\|>'.*never sampled"):
        trainer(tmp_path, policy, tokenizer=tokenizer)


@pytest.mark.parametrize("role", ["ref_model", "reward_model", "value_model"])
def test_a_model_that_reads_the_policy_s_tokens_needs_its_vocabulary(tmp_path, role):
    build = tiny_causal_lm if role == "ref_model" else tiny_classifier
    kind = {} if role == "ref_model" else {"kind": "llama"}
    small = build(TOKENIZER, **kind)
    small.resize_token_embeddings(ROWS - 9)
    with pytest.raises(ValueError, match=f"The {role} .* has embeddings for {ROWS - 9} tokens, but the policy"):
        trainer(tmp_path, **{role: small})


def test_a_pad_token_beyond_the_embedding_is_no_harm(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == ROWS
    run = trainer(tmp_path, tokenizer=tokenizer, ref_model=tiny_policy(1), total_episodes=8)
    run.train()
    assert run.state.global_step == 4
