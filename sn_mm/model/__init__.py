"""Operations on whole models: norms converted, simplified, measured."""
