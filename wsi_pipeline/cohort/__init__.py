"""The slides of a study.

The slide sheet, the sheet of Camelyon16, the synthetic cohort of the demo, and the estimate of a cohort's cost.
Imported by `evaluation`, `provenance`, `report`, the stages, the command line and the workflow; imports `masks`,
`pyramid`, `slides`, `io` and `config`.
"""
