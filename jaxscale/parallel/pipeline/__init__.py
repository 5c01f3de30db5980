"""Pipeline parallelism: schedules as tables in pure Python, and one runtime that executes any of them."""
