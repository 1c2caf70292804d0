"""Looking after training runs: which there are, how far, how good, how they differ, and what of them can go.

stillgrain runs list
stillgrain runs compare demo wider -o compare.html

All that is known of a run is read from its folder, without Ray and, but for the best of other metrics than the config's
own, without torch.
"""
