r"""Serve rewards over HTTP, so that a training run on another machine, or several, can ask for them.

The reward model of the starter kit (it comes from recipes/reward.py):

    python recipes/serve_reward.py --config recipes/configs/serve_reward.yaml

A reward model of your own and a rule, for other machines, with a token that clients must show:

    export REWARD_API_TOKEN=...    # the same where it is served and where it is asked
    python recipes/serve_reward.py --reward_funcs my-org/my-reward-model EndsWithSentence --reward_weights 1 0.5 \
        --host 0.0.0.0 --port 8000

It prints the reward list of a client. POST /score is the protocol of rlhf_recipes/rewards/remote.py, GET /health says
what is served, and /openapi.json describes both. Ctrl-C or SIGTERM ends it when the requests under way are answered,
or after five seconds.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.cli import run
from rlhf_recipes.rewards import load_rewards
from rlhf_recipes.rewards.loading import RewardArguments
from rlhf_recipes.rewards.server import listen, make_app, serve

LOCAL = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass
class ServerArguments:
    """Where rewards are served, and to whom."""

    help_title = "Server"

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0 for all of this machine."})
    port: int = field(default=8000, metadata={"help": "Port to listen at; 0 for any that is free."})
    token_env: str = field(
        default="REWARD_API_TOKEN",
        metadata={"help": "Environment variable with the token to ask for. Where it is not set, none is."},
    )
    max_rows: int = field(default=1024, metadata={"help": "Most rows in a request."})
    max_body_mb: float = field(default=16.0, metadata={"help": "Largest request, in MB."})
    max_text_mb: float = field(default=1.0, metadata={"help": "Longest prompt or completion, in million characters."})
    max_seconds: float = field(default=60.0, metadata={"help": "How long the rewards may take for one request."})

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; give one from 0 to 65535.")


def main(argv: Sequence[str] | None = None) -> None:
    args, reward_args = RecipeParser((ServerArguments, RewardArguments), __doc__).parse(argv)

    # Rewards.
    rewards = load_rewards(reward_args.reward_funcs, reward_args.reward_weights)
    app = make_app(rewards, args.token_env, args.max_rows, args.max_body_mb, args.max_text_mb, args.max_seconds)

    # Server.
    listener = listen(args.host, args.port)
    host = socket.gethostname() if args.host in EVERYWHERE else args.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/score"
    client = {"func": "RemoteReward", "args": {"url": url}}
    if os.environ.get(args.token_env):
        print(f"Clients need the token that {args.token_env} holds here, in the same variable there.")
    elif args.host not in LOCAL:
        print(f"Whoever reaches this port can use it. Set {args.token_env} to a token that clients must show.")
    print(f"Serving {', '.join(rewards.names)}. In the YAML of a run:")
    print(f"\nreward_funcs: [{json.dumps(client)}]\n", flush=True)
    serve(app, listener)


if __name__ == "__main__":
    run(main)
