// Package conformance runs the Gateway API's own tests of service meshes. `cargo xtask test --conformance` builds it and
// gives it a cluster; what is claimed is in options.yaml.
package conformance

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}

// The suite skips a test without a word when one of its features is not declared.
func TestOptionsLeaveOutNoTestOfAMesh(t *testing.T) {
	text, err := os.ReadFile("options.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var options suite.ConfigurableOptions
	if err := yaml.UnmarshalStrict(text, &options); err != nil {
		t.Fatal(err)
	}
	declared := features.SetsToNamesSet(
		features.MeshCoreFeatures, features.HTTPRouteCoreFeatures, features.GRPCRouteCoreFeatures)
	declared.Insert(options.SupportedFeatures...)
	for feature := range features.MeshExtendedFeatures {
		if !declared.Has(feature.Name) {
			t.Errorf("the feature %s of meshes is not declared", feature.Name)
		}
	}
	found := 0
	for _, test := range tests.ConformanceTests {
		if !strings.HasPrefix(test.ShortName, "Mesh") {
			continue
		}
		found++
		t.Log(test.ShortName)
		for _, feature := range test.Features {
			if !declared.Has(feature) {
				t.Errorf("%s does not run, because %s is not declared", test.ShortName, feature)
			}
		}
	}
	// As many as version 1.7.0 has; it also tells whether the names still begin this way.
	if found != 23 {
		t.Errorf("the suite has %d tests of meshes instead of 23", found)
	}
}
