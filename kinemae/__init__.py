"""KineMAE: masked-autoencoder pretraining of video encoders, and fine-tuning."""

__version__ = "0.1.0"
