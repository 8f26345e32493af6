"""One model over several processes: tensor parallel within a stage, pipeline parallel between stages."""
