"""`python -m npgpt.report RUN PICTURE`."""

from npgpt.report.losses import main

raise SystemExit(main())
