"""The slides of a study.

The slide sheet, the sheet of Camelyon16, the synthetic cohort of the demo, and the estimate of a cohort's cost.
"""
