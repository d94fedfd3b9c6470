"""What other tools show of a sweep: TensorBoard and optuna-dashboard as it runs, MLflow and W&B as copies after it."""
