from inspectord.cli import main

raise SystemExit(main())
