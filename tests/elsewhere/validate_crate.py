"""Validate a results folder as a Workflow Run RO-Crate with the RO-Crate community's own validator.

python validate_crate.py RESULTS

Needs no network: the JSON-LD context comes from the package rocrate. That one is of RO-Crate 1.3, so terms with other
URIs in 1.1 are restored here. The context of workflow runs defines only the term in use.
"""

import json
import sys
from importlib.resources import files

from rocrate_validator import models, services
from rocrate_validator.utils import document_loader, http

BIOSCHEMAS = "https://bioschemas.org/"
RO_CRATE_1_1 = json.loads(files("rocrate").joinpath("data/ro-crate.jsonld").read_text(encoding="utf-8"))
RO_CRATE_1_1["@context"] |= {
    "ComputationalWorkflow": f"{BIOSCHEMAS}ComputationalWorkflow",
    "FormalParameter": f"{BIOSCHEMAS}FormalParameter",
    "input": f"{BIOSCHEMAS}ComputationalWorkflow#input",
    "output": f"{BIOSCHEMAS}ComputationalWorkflow#output",
}
CONTEXTS = {
    "https://w3id.org/ro/crate/1.1/context": RO_CRATE_1_1,
    "https://w3id.org/ro/terms/workflow-run/context": {
        "@context": {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}
    },
}


class Response:
    status_code = 200

    def __init__(self, content):
        self.headers = {"Content-Type": "application/ld+json"}
        self.content = content
        self.text = json.dumps(content)

    def json(self):
        return self.content


get = http.HttpRequester.__getattr__


def local(self, name):
    if name != "get":
        return get(self, name)
    return lambda url, **_: Response(CONTEXTS[url])


http.HttpRequester.__getattr__ = local
document_loader._fetch_json_ld = CONTEXTS.__getitem__

for profile in ("ro-crate-1.1", "process-run-crate-0.5", "workflow-run-crate-0.5"):
    settings = models.ValidationSettings(
        rocrate_uri=sys.argv[1], profile_identifier=profile, requirement_severity=models.Severity.RECOMMENDED
    )
    result = services.validate(settings)
    issues = {(i.severity.name, i.check.identifier, str(i.message)) for i in result.get_issues()}
    for severity, check, message in sorted(issues):
        print(f"{severity}\t{check}\t{message}")
    if not result.passed(models.Severity.REQUIRED):
        sys.exit(f"{profile}: not valid")
    print(f"{profile}: valid")
