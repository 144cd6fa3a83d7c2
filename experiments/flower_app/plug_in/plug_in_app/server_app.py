"""Aggregate privately: one import and one plan are all that differ from Flower's own strategy."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedopt import FedNovoGrad, PrivacyPlan
from plug_in_app.model import build_model, load_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Solve the noise for the budget, then train as any Flower app does."""
    config = context.run_config
    plan = PrivacyPlan.for_epsilon(
        epsilon=float(config["epsilon"]),
        population=int(config["population"]),
        cohort=int(config["cohort"]),
        rounds=int(config["rounds"]),
        delta=float(config["delta"]),
        clip_norm=float(config["clip-norm"]),
    )
    strategy = FedNovoGrad(
        eta=0.1,
        schedule=lambda round_number: 0.9**round_number,
        privacy=plan,
        output_dir=str(config["output"]) or None,
    )

    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        model = build_model()
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = test(model, load_data(10_001))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy.start(
        grid,
        ArrayRecord(build_model().state_dict()),
        num_rounds=plan.rounds,
        evaluate_fn=evaluate,
    )
