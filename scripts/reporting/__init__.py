"""The report on a detector's variants: what each costs in accuracy and gives in speed."""
