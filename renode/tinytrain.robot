*** Settings ***
Documentation     The keywords of the lab, for every suite: `Resource    tinytrain.robot`.
...
...               Choose the device on the command line:
...               `robot --variable TARGET:renode tests/robot`, or `--variable TARGET:serial --variable PORT:/dev/ttyACM0`.
Library           tinytrain_lite.robot.TinyTrain    ${TARGET}    ${BOARD}    ${PORT}

*** Variables ***
${TARGET}         unicorn
${BOARD}          nucleo-f746zg
${PORT}           ${EMPTY}

*** Keywords ***
Prepare Board
    [Documentation]    For `Suite Setup`: skips the suite if the target is not there, else flashes and switches on.
    ...    The arguments are those of `Flash Firmware`.
    [Arguments]    &{firmware}
    Target Should Be Available
    Flash Firmware    &{firmware}
