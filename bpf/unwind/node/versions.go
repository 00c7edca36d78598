package node

// sharedData is where SharedFunctionInfo has its code in all versions: right behind its map.
const sharedData = 8

// version is what V8 does not say of itself.
type version struct {
	major, minor int // of V8; Node.js stays with one of them for the life of its own major version

	functionTypes uint16 // instance types of JSFunction, where they are not said

	positions  uint64 // see Layout.scopeInfo
	plainFlags bool
	module     uint32

	bytecodePositions uint64
	flaggedPositions  bool

	codeInline                     bool
	codeDeopt, codePositions       uint64
	codeStart, codeFlags, codeSize uint64 // where they are not said

	wrapped bool // deoptimization data name their function through a wrapper
	trusted bool // some arrays are in V8's trusted space and have types of their own
}

// versions are those whose objects can be read.
var versions = []version{
	{ // Node.js 18.0
		major: 10, minor: 1, functionTypes: 15, module: 3, bytecodePositions: 32, codeInline: true, codeDeopt: 16, codePositions: 24,
	},
	{ // Node.js 18
		major: 10, minor: 2, functionTypes: 15, module: 3, bytecodePositions: 32, codeInline: true, codeDeopt: 16, codePositions: 24,
	},
	{ // Node.js 19
		major: 10, minor: 8, functionTypes: 15, module: 3, bytecodePositions: 32, codeInline: true, codeDeopt: 16, codePositions: 24,
	},
	{ // Node.js 20
		major: 11, minor: 3, functionTypes: 15, module: 3, bytecodePositions: 32, codeDeopt: 16, codePositions: 24,
		codeStart: 40, codeFlags: 48, codeSize: 56,
	},
	{ // Node.js 21
		major: 11, minor: 8, functionTypes: 15, module: 3, bytecodePositions: 32, codeDeopt: 8, codePositions: 16,
		codeStart: 32, codeFlags: 40, codeSize: 44,
	},
	{ // Node.js 22
		major: 12, minor: 4, module: 3, bytecodePositions: 24, codeDeopt: 8, codePositions: 16, trusted: true,
	},
	{ // Node.js 23
		major: 12, minor: 9, module: 5, positions: 3, plainFlags: true, bytecodePositions: 24, codeDeopt: 8, codePositions: 16, trusted: true, wrapped: true,
	},
	{ // Node.js 24
		major: 13, minor: 6, module: 5, positions: 3, plainFlags: true, bytecodePositions: 24, codeDeopt: 8, codePositions: 16, trusted: true, wrapped: true,
	},
	{ // Node.js 25
		major: 14, minor: 1, module: 5, positions: 3, plainFlags: true, bytecodePositions: 24, codeDeopt: 8, codePositions: 16, trusted: true, wrapped: true,
		flaggedPositions: true,
	},
	{ // Node.js 26
		major: 14, minor: 6, module: 5, positions: 3, plainFlags: true, bytecodePositions: 24, codeDeopt: 8, codePositions: 16, trusted: true, wrapped: true,
		flaggedPositions: true,
	},
}

// versionOf is nil for a version that is not known.
func versionOf(v Version) *version {
	for i := range versions {
		if versions[i].major == v.Major && versions[i].minor == v.Minor {
			return &versions[i]
		}
	}
	return nil
}
