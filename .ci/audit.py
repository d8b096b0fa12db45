"""Known vulnerabilities of the pinned versions, by pip-audit. Fails if there is one; says so where none could be looked up.

pip-audit itself finds "no known vulnerabilities" where the service knows nothing of a package, as a mirror does.
"""

import json
import subprocess
import sys

COMMAND = [
    "-m",
    "pip_audit",
    "--requirement",
    ".ci/constraints.txt",
    "--no-deps",
    "--disable-pip",
    "--progress-spinner=off",
]


def main() -> str | None:
    """Return what makes the audit fail."""
    run = subprocess.run([sys.executable, *COMMAND, "--format=json"], check=False, capture_output=True, text=True)
    try:
        packages = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOT AUDITED: the vulnerability service did not answer.\n{run.stderr[-300:]}")
        return None
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        print(
            f"NOT AUDITED: {len(unknown)} of {len(packages)} packages, which the service does not list: {', '.join(unknown)}"
        )
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    print(f"{len(packages) - len(unknown)} packages audited, {len(found)} known vulnerabilities")
    return "\n".join(found) or None


if __name__ == "__main__":
    sys.exit(main())
