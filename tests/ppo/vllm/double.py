"""A double of vLLM's server: the requests that a rollout makes, answered by a tiny model here. No vLLM is in it.

It is for what must be refused, and for training that can be compared with training without a server. What vLLM itself
answers is tested with vLLM, in `test_real.py`.
"""

import contextlib
import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf_recipes.modeling.generation import LocalGenerator, pad_left
from rlhf_recipes.modeling.logprobs import completion_logprobs
from tests.ppo.helpers import TOKENIZER, tiny_policy


class Double:
    """What it serves, what it was asked, and what is wrong with it: `faults` are names that its methods look for."""

    def __init__(self, *faults):
        self.faults = set(faults)
        self.model = tiny_policy().eval()
        self.tokenizer = TOKENIZER
        self.adapters = {}
        self.folders = {}
        self.asked = []
        self.max_model_len = 512
        self.turn = threading.Lock()

    def answer(self, path, body):
        """The code and the body of an answer; a text is sent as it is."""
        self.asked.append(path)
        if path in self.faults:
            return 404, {"detail": "Not Found"}
        return getattr(self, path.rpartition("/")[2])(body)

    def refusal(self, code, message):
        return code, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}

    def models(self, body):
        loaded = [{"id": name, "root": self.folders[name], "parent": "base"} for name in self.adapters]
        return 200, {"data": [{"id": "base", "root": "/models/tiny", "max_model_len": self.max_model_len}, *loaded]}

    def tokenize(self, body):
        ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return 200, {"tokens": ids, "count": len(ids)}

    def load_lora_adapter(self, body):
        name, folder = body["lora_name"], body["lora_path"]
        if "no --enable-lora" in self.faults:
            return self.refusal(500, "Call to add_lora method failed: LoRA is not enabled")
        if not Path(folder, "adapter_config.json").is_file():
            return self.refusal(404, f"Loading lora {name} failed: No adapter found for {folder}")
        self.folders[name] = folder
        self.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.model), folder).eval()
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora_adapter(self, body):
        del self.adapters[body["lora_name"]]
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        if "keeps old weights" not in self.faults:
            self.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval()
        return 200, {"results": [None]}

    def reset_prefix_cache(self, body):
        return 200, {"success": True}

    def completions(self, body):
        name = body["model"]
        model = self.adapters.get(name) if name != "base" else self.model
        if model is None:
            return self.refusal(404, f"The model `{name}` does not exist.")
        if "ignores adapters" in self.faults:
            model = self.model
        made = min(body["max_tokens"], 3) if "stops early" in self.faults else body["max_tokens"]
        ids, mask = pad_left([body["prompt"]], 0, len(body["prompt"]))
        ends = body.get("stop_token_ids") or None
        config = GenerationConfig(
            max_new_tokens=made, temperature=body["temperature"], eos_token_id=ends, pad_token_id=0
        )
        completion = LocalGenerator(model).generate(ids, mask, config, [body["seed"]])
        completion = getattr(completion, "completion_ids", completion)
        temperature = 1.0 if "raw" in self.faults else body["temperature"]
        whole = mask.new_ones(completion.shape)
        logprobs, _, _ = completion_logprobs(model, ids, mask, completion, whole, temperature, keep=False)
        tokens, told = completion[0].tolist(), logprobs[0].tolist()
        choice = {"index": 0, "text": "", "token_ids": tokens, "logprobs": {"token_logprobs": told}}
        return 200, {"model": "base" if "ignores names" in self.faults else name, "choices": [choice]}


@contextlib.contextmanager
def served(double):
    """The address at which a double listens."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "{}")
            with double.turn:
                code, answer = double.answer(self.path, body)
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
