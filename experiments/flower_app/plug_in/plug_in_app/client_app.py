"""Train on one node. The only line that knows of privacy is the list of mods."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedopt import noise_share_mod, per_layer_clip_mod
from plug_in_app.model import build_model, load_data, test, train

app = ClientApp(mods=[noise_share_mod, per_layer_clip_mod])


@app.train()
def train_node(message: Message, context: Context) -> Message:
    """Train the received model on this node's data and reply with its weights."""
    model = build_model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    data = load_data(int(context.node_config.get("partition-id", 0)))
    config = context.run_config
    loss = train(model, data, float(config["learning-rate"]), int(config["local-epochs"]))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"loss": loss, "num-examples": len(data[1])}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate_node(message: Message, context: Context) -> Message:
    """Evaluate the received model on this node's data."""
    model = build_model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    data = load_data(int(context.node_config.get("partition-id", 0)))
    loss, accuracy = test(model, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data[1])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
