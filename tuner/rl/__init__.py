"""Reinforcement learning from rewards: rollouts, rewards, advantages, and the trainer over them."""
