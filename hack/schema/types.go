package main

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apidiscoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	imagepolicyv1alpha1 "k8s.io/api/imagepolicy/v1alpha1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// Group versions that no v1.35 server serves any more. policy/v1beta1 stays: its Eviction is
// still decoded.
var removed = map[string]bool{
	"apps/v1beta1": true, "apps/v1beta2": true, "autoscaling/v2beta1": true,
	"autoscaling/v2beta2": true, "batch/v1beta1": true, "discovery.k8s.io/v1beta1": true,
	"events.k8s.io/v1beta1": true, "extensions/v1beta1": true,
	"flowcontrol.apiserver.k8s.io/v1beta1": true, "flowcontrol.apiserver.k8s.io/v1beta2": true,
	"flowcontrol.apiserver.k8s.io/v1beta3": true, "rbac.authorization.k8s.io/v1alpha1": true,
	"rbac.authorization.k8s.io/v1beta1": true, "scheduling.k8s.io/v1beta1": true,
	"storage.k8s.io/v1alpha1": true, "authentication.k8s.io/v1beta1": true,
	"authorization.k8s.io/v1beta1": true, "node.k8s.io/v1beta1": true, "node.k8s.io/v1alpha1": true,
}

// kind is one registered kind.
type kind struct {
	gvk schema.GroupVersionKind
	typ reflect.Type
}

func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, admissionv1.AddToScheme, imagepolicyv1alpha1.AddToScheme,
		apidiscoveryv2.AddToScheme, apidiscoveryv2beta1.AddToScheme,
		apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme,
		metav1.AddMetaToScheme, metav1beta1.AddMetaToScheme,
	} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s, nil
}

// kinds lists what is registered, by group, version and kind.
func kinds() ([]kind, error) {
	s, err := newScheme()
	if err != nil {
		return nil, err
	}
	var all []kind
	for gvk, typ := range s.AllKnownTypes() {
		if gvk.Version != runtime.APIVersionInternal && !removed[gvk.GroupVersion().String()] {
			all = append(all, kind{gvk, typ})
		}
	}
	sort.Slice(all, func(i, j int) bool { return gvkText(all[i].gvk) < gvkText(all[j].gvk) })
	return all, nil
}

func gvkText(gvk schema.GroupVersionKind) string {
	return gvk.GroupVersion().String() + " " + gvk.Kind
}

// Types whose encodings are written by hand, by the letter of their facts.
var special = map[reflect.Type]string{
	reflect.TypeFor[resource.Quantity]():                            "Q",
	reflect.TypeFor[intstr.IntOrString]():                           "I",
	reflect.TypeFor[metav1.Time]():                                  "T",
	reflect.TypeFor[metav1.MicroTime]():                             "U",
	reflect.TypeFor[metav1.Duration]():                              "D",
	reflect.TypeFor[metav1.FieldsV1]():                              "F",
	reflect.TypeFor[runtime.RawExtension]():                         "R",
	reflect.TypeFor[apiextensionsv1.JSON]():                         "J",
	reflect.TypeFor[any]():                                          "J",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrBool]():        "B",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrArray]():       "A",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrStringArray](): "S",
}

type modelNamer interface{ OpenAPIModelName() string }

// modelName is the OpenAPI name of a struct.
func modelName(t reflect.Type) string {
	if n, ok := reflect.New(t).Interface().(modelNamer); ok {
		return n.OpenAPIModelName()
	}
	return "io." + strings.ReplaceAll(strings.Replace(t.PkgPath(), "k8s.io", "k8s", 1), "/", ".") + "." + t.Name()
}

// typeText is the notation of a type: a letter, `[]` and `{}` before an element, or a message.
func typeText(t reflect.Type, from string, need func(reflect.Type)) string {
	if s, ok := special[t]; ok {
		if s == "B" || s == "A" || s == "S" {
			need(reflect.TypeFor[apiextensionsv1.JSONSchemaProps]())
		}
		return s
	}
	switch t.Kind() {
	case reflect.Bool:
		return "b"
	case reflect.Int32:
		return "i"
	case reflect.Int64:
		return "l"
	case reflect.Float64:
		return "d"
	case reflect.String:
		return "s"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "y"
		}
		return "[]" + elemText(t.Elem(), from, need)
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			panic("map key of " + t.String())
		}
		return "{}" + elemText(t.Elem(), from, need)
	case reflect.Struct:
		need(t)
		return relative(modelName(t), from)
	}
	panic("type " + t.String())
}

func elemText(t reflect.Type, from string, need func(reflect.Type)) string {
	if t.Kind() == reflect.Pointer {
		return "*" + typeText(t.Elem(), from, need)
	}
	return typeText(t, from, need)
}

// relative leaves out the package of a message that stands in the same one.
func relative(name, from string) string {
	if pkg := from[:strings.LastIndex(from, ".")+1]; strings.HasPrefix(name, pkg) && !strings.Contains(name[len(pkg):], ".") {
		return "." + name[len(pkg):]
	}
	return name
}

// goText is how Go names a type in errors, where that does not follow from its notation.
func goText(t reflect.Type) string {
	if t.Kind() == reflect.Slice && t.Elem() == reflect.TypeFor[any]() {
		return "[]interface{}"
	}
	natural := func(t reflect.Type) bool {
		if _, ok := special[t]; ok {
			return true
		}
		return t.PkgPath() == "" || t.Kind() == reflect.Struct
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Map:
		if _, ok := special[t]; ok {
			return ""
		}
		under := underlying(t)
		if !natural(t) {
			return t.String() + "=" + under
		}
		if natural(t.Elem()) && (t.Kind() == reflect.Slice || t.Key().PkgPath() == "") && goText(t.Elem()) == "" && t.Elem().Kind() != reflect.Pointer {
			return ""
		}
		return under
	}
	if natural(t) {
		return ""
	}
	return t.String()
}

func underlying(t reflect.Type) string {
	elem := t.Elem()
	text := elem.String()
	if elem.Kind() == reflect.Slice && elem.PkgPath() != "" && elem.Elem().Kind() != reflect.Uint8 {
		text += "=" + underlying(elem)
	}
	if t.Kind() == reflect.Slice {
		return "[]" + text
	}
	return fmt.Sprintf("map[%s]%s", t.Key().String(), text)
}
