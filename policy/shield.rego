# What a verified request must satisfy beyond its proof. Default deny: a request passes only when no rule is violated.
#
# input: policy/input.schema.json, the same document that the receipt keeps. data.signet.routes: the route table of the
# filter, by name. Change a rule here, its test in shield_test.rego, and run `make policy`.
package signet.shield

import rego.v1

# The share of each run of arrivals that passes while the breaker of a route is open; the plan's own is the least.
availability_floor := 0.05

# Routes on which the classical half of a hybrid is enough while the breaker is not closed.
fallback_routes := {name |
	some name, declared in data.signet.routes
	declared.fallback_classic == true
}

post_quantum := {"ml-dsa-44", "ml-dsa-65", "ml-dsa-87"}

default verdict := {"allow": false, "rule": "default_deny", "floor_share": 0, "fallback_classic": false}

verdict := {
	"allow": count(violations) == 0,
	"rule": rule,
	"floor_share": availability_floor,
	"fallback_classic": input.route in fallback_routes,
}

rule := "shield.allow" if count(violations) == 0

# Of several violated rules the first by name is told, so that the same input always gets the same answer.
rule := min(violations) if count(violations) > 0

route := data.signet.routes[input.route]

violations contains "route.unknown" if not known_route

violations contains "input.malformed" if not whole_input

# Every other rule may rely on these members being there, and of their type: `not x in y` would not hold for an absent y.
known_route if {
	is_string(route.binding)
	is_array(route.subjects)
	is_array(route.algorithms)
	is_string(route.mode)
	is_string(route.evidence)
}

whole_input if {
	is_string(input.subject)
	is_string(input.binding)
	is_array(input.algorithms)
	every algorithm in input.algorithms { is_string(algorithm) }
	is_boolean(input.fallback)
	is_boolean(input.evidence)
	is_string(input.phase)
}

violations contains "binding.required" if {
	not route.binding == "none"
	not input.binding == "tls-exporter"
}

violations contains "subject.not_admitted" if {
	not route.subjects == []
	not input.subject in route.subjects
}

violations contains "algorithm.missing" if not count(input.algorithms) > 0

# A hybrid stands in the list under the names of both halves; its classical half alone only where it is a fallback.
violations contains "algorithm.not_allowed" if {
	not concat("+", input.algorithms) in route.algorithms
	not allowed_as_fallback
}

allowed_as_fallback if {
	input.fallback
	some name in route.algorithms
	split(name, "+")[0] == input.algorithms[0]
	count(input.algorithms) == 1
}

violations contains "algorithm.post_quantum_missing" if {
	not route.mode in {"and", "or"}
	count({algorithm | some algorithm in input.algorithms; algorithm in post_quantum}) == 0
}

violations contains "fallback.not_permitted" if {
	input.fallback
	not input.route in fallback_routes
}

violations contains "fallback.not_needed" if {
	input.fallback
	not input.phase in {"open", "half_open"}
}

violations contains "evidence.missing" if {
	not route.evidence in {"none", "optional"}
	not input.evidence == true
}
