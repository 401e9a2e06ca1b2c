"""Training: supervised, few-shot, LoRA and PPO, on rows like those that are classified.

    settings      everything that a run is told, and a TOML file of it
    rows          training rows out of files, checked before anything starts
    sampling      which labels a text is shown, batch after batch: negatives, shuffling, augmentation
    batches       texts and labels as tensors, for each architecture; logits with gradients
    losses        binary cross-entropy, focal, softmax, contrastive: pure functions
    supervised    one step on the right labels
    ppo           one step on a reward (proximal policy optimisation)
    lora          low-rank adapters through peft
    loop          steps, learning rates, evaluation, checkpoints, resuming
    run           a whole training: from files to a model's folder

Every random choice is drawn from the seed and the number of the step, never from a state that is carried along: a run
that is resumed goes on exactly as one that was not interrupted.
"""
