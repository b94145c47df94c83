#!/bin/sh
# Builds a release of the model repository and puts it into the model store, in steps:
#   build    the repository with the detector in ONNX, in $WORK
#   plan     replaces the detector by the TensorRT plan that is in $WORK (made between the two steps)
#   publish  moves it to $MODEL_STORE/$MODEL_RELEASE, whole or not at all
# A release that is there is never changed: every step then does nothing.
# MODEL is an ONNX detector to take; without it, the default one is fetched.
set -eu
release=$MODEL_STORE/$MODEL_RELEASE
repository=$WORK/repository
if [ -d "$release" ]; then
	echo "$release is there already, and stays as it is."
	exit 0
fi
for step in "$@"; do
	case $step in
	build)
		rm -rf "$repository"
		python3 scripts/build_repository.py ${MODEL:+"$MODEL"} --repository "$repository" --no-check
		;;
	plan)
		python3 scripts/build_repository.py "$WORK/plans/model.plan" --engine tensorrt --replace \
			--repository "$repository" --no-check
		;;
	publish)
		# Copied beside its place and renamed: no server ever sees half of it.
		rm -rf "$release.partial"
		cp -R "$repository" "$release.partial"
		mv "$release.partial" "$release"
		echo "Published $release."
		;;
	*)
		echo "error: no step $step; there are build, plan and publish" >&2
		exit 2
		;;
	esac
done
