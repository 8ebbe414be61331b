CAVEATS = (
    "Published rows are from table 5 of the Pixio paper (arXiv 2512.15715), which prints no deviations, no tasks and no "
    "seeds. For each model it takes the better of a global and a spatial embedding, for Pixio the mean of its class "
    "tokens.",
    "They were obtained with the released demonstrations in older simulators (MuJoCo 2.0, MetaWorld v2, a fork of "
    "TriFinger), and most likely count the best of about 20 evaluations on the test starts. Compare rows of ours with "
    "each other; beside published ones, differences of several points say nothing.",
)
