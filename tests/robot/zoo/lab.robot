*** Settings ***
Documentation     A lab in small: a hand-written model must work, learn, fit and be fast. With a defect, named by
...               `--variable DEFECT:ZOO_...`, exactly one of these checks fails.
Resource          ../../../renode/tinytrain.robot
Suite Setup       Prepare Board    model=${CURDIR}/model.c    define=${DEFECT}
Suite Teardown    Switch Off

*** Variables ***
${DEFECT}         ${EMPTY}

*** Test Cases ***
The Board Answers
    Board Should Say Hello

Training Runs To Its End
    Train On Device    steps=60    rate=0.3
    No Fault Should Have Occurred

It Learns
    Accuracy Should Be At Least    90%

It Fits
    SRAM High Water Mark Should Be Below    16KB

A Step Is Fast
    Instructions Per Step Should Be Below    20K
    Cycles Per Step Should Be Below    20K
