"""What the way through `castor serve` costs: against bare `vllm serve`, and what each mode of the guard adds.

`python -m benchmarks.serve_load` makes a run with a Llama of random weights (about 30M parameters, its judges of the
same size), or takes a finished one with --run. Bare vLLM and `castor serve` run side by side, with the same engine
arguments, environment and threads, and take turns with the same streamed chats, while the other one rests, so that a
drifting machine hurts both alike: closed loop at several concurrencies, and open loop with Poisson arrivals, at shares
of what bare vLLM carried. Ratios are of one turn. Then come the modes of the guard and the sizes of its windows, each
beside guard off. The judges find nothing unsafe there, so nothing is withheld and `regenerate` samples no second time:
it is the price of judging.

`--variant NAME=KEY=VALUE[,KEY=VALUE]` pairs `castor serve` with these environment variables with bare, too. Beside the
times stands the CPU time per token of every process, of the client too, and of all else that ran on the machine: a
client near one core, or a busy neighbour, spoils the measurement.
"""
